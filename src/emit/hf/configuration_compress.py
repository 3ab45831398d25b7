"""Configuration of an encoder that `compress` made. Its structure is under the key `compress` of config.json."""

from transformers import PretrainedConfig


class CompressConfig(PretrainedConfig):
    model_type = "compress"

    def __init__(
        self,
        vocab_size=1,
        hidden_size=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=1,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        max_position_embeddings=1,
        type_vocab_size=0,
        pad_token_id=0,
        compress=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        # What the original had: layers have lists of their own below.
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        # matrices: by name, how each is stored; layers: heads and blocks; positions, tokens, head.
        self.compress = compress or {}
        super().__init__(pad_token_id=pad_token_id, **kwargs)
