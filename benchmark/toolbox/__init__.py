"""What several strategies use: encoders, embeddings, clusters, languages, WordNet, text boxes, decontamination."""
