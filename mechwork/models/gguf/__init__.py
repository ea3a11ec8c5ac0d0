"""GGUF: the file format of llama.cpp, LM Studio and Ollama, read into plain weights.

    header.py     what the file says about itself: metadata, and where each tensor lies
    config.py     metadata -> Hugging Face config; the architectures that are claimed
    weights.py    tensors -> parameters of a fresh module, dequantised piece by piece

Nothing is executed, and everything that can be wrong with a file is found in its header, before a tensor is read.
"""

from .config import GGUF_CLAIMED as GGUF_CLAIMED
from .header import GgufHeader as GgufHeader
from .header import read_header as read_header
from .weights import load_gguf as load_gguf
