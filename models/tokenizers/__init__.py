"""Frame tokenizers: uint8 frames to integer codes and back."""
