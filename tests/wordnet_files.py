"""WordNet's files written anew from the package's tables, as far as nltk reads them."""

from pathlib import Path

from benchmark.toolbox.wordnet import PARTS_OF_SPEECH, TABLES_DIR, WordNet, load_wordnet

KINDS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
HEAD = "  1 May be copied with this notice.  \n  2   \n  3 WordNet 3.0 Copyright 2006 by Princeton University.  \n"


def write_wordnet_files(folder: Path, wordnet: WordNet | None = None) -> Path:
    """Write every lemma with its first synset alone, at its place in the data files, and the lists of exceptions."""
    wordnet = wordnet or load_wordnet(TABLES_DIR)
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("".join(f"{number:02d} name{number} 1\n" for number in range(45)))
    for part in PARTS_OF_SPEECH:
        offsets, kind = wordnet.first_offsets[part], KINDS[part]
        index = (f"{lemma} {kind} 1 0 1 0 {offset:08d}  \n" for lemma, offset in offsets.items())
        (folder / f"index.{part}").write_text(HEAD + "".join(index))
        lines = (" ".join([form, *lemmas]) for form, lemmas in wordnet.exceptions[part].items())
        (folder / f"{part}.exc").write_text("".join(f"{line}\n" for line in lines))
        data = bytearray(HEAD.encode())
        for offset, lemma in sorted({offset: lemma for lemma, offset in offsets.items()}.items()):
            data += b" " * (offset - len(data) - 1) + b"\n" * (offset > len(data))
            data += f"{offset:08d} 00 {kind} 01 {lemma} 0 000 | meaning  \n".encode()
        (folder / f"data.{part}").write_bytes(data)
    return folder
