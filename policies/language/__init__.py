"""The language stage: a llama's layers, what was read and kept, decoding of tokens, texts to ids."""
