"""What notebooks and other programs use: `import winnow as wb` hands these names on."""
