"""Encoders that `compress` made: layers of uneven shapes, packed matrices, coded word tables, tokens that are dropped.

Needs torch and transformers, nothing else. Load with `AutoModel….from_pretrained(folder, trust_remote_code=True)`.
Texts are padded on the right. Every number comes from config.json (key `compress`) and model.safetensors.

Constants are made in `forward`: what `__init__` makes and the checkpoint does not hold is lost when Transformers builds
the model on the meta device.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration_compress import CompressConfig

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def signs(words, width, dtype):
    """Bits of 32-bit words, lowest first, as -1 and +1: `[..., words]` to `[..., width]`."""
    shifts = torch.arange(32, device=words.device, dtype=torch.int32)
    bits = (words.unsqueeze(-1) >> shifts) & 1  # the sign bit fills up from the left, and is cut off by the mask
    return bits.flatten(-2)[..., :width].to(dtype) * 2 - 1


def rounded(x, bits):
    """Each token's numbers on `2^bits` levels of its own, 0 among them."""
    if bits is None:
        return x
    top = 2**bits - 1
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / top).clamp(min=1e-30)
    zero = torch.round(-low / scale)
    return ((torch.round(x / scale) + zero).clamp(0, top) - zero) * scale


class Matrix(nn.Module):
    """`x @ W.T + bias`, or rows of W for a table. `spec` says in which form W, `[rows, cols]`, is stored:

    dense     weight
    int8      weight_scale[row] * weight_int8
    binary    sum over planes of weight_scale * signs(weight_packed), + lowrank_u @ lowrank_v
    double    dbf_a * (signs(dbf_u) * dbf_m) @ signs(dbf_v) * dbf_b
    subspace  codewords of pq_codebooks side by side, turned by pq_rotation, + pq_mean
    factored  factor_u @ factor_v

    The last two are tables, and keep some rows as they are (exact_ids, exact_rows).
    """

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        for name, (dtype, shape) in spec["parts"].items():
            if dtype == "float":
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                self.register_buffer(name, torch.empty(shape, dtype=getattr(torch, dtype)))

    def forward(self, x):
        (rows, cols), bits = self.spec["shape"], self.spec["activations"]
        if rows == 0 or cols == 0:
            y = x.new_zeros(*x.shape[:-1], rows)
        elif self.spec["form"] == "double":
            rank = self.dbf_m.shape[0]
            inner = rounded(x * self.dbf_b, bits) @ signs(self.dbf_v, cols, x.dtype).T * self.dbf_m
            y = rounded(inner, bits and 8) @ signs(self.dbf_u, rank, x.dtype).T * self.dbf_a
        elif self.spec["form"] == "binary":
            inputs = rounded(x, bits)
            y = inputs @ self.planes(torch.arange(rows, device=x.device)).T
            if self.low_rank is not None:
                u, v = self.low_rank
                # Beside planes with a scale a row the residual sees inputs as they are.
                y = y + (inputs if self.spec["group"] else x) @ v.T @ u.T
        else:
            y = rounded(x, bits) @ self.rows(torch.arange(rows, device=x.device)).T
        return y if not hasattr(self, "bias") else y + self.bias

    def rows(self, ids):
        """Rows of W, `[*ids.shape, cols]`."""
        form, cols = self.spec["form"], self.spec["shape"][1]
        if form == "dense":
            return self.weight[ids]
        if form == "int8":
            return self.weight_scale[ids].unsqueeze(-1) * self.weight_int8[ids]
        if form == "binary":
            w = self.planes(ids)
            return w if self.low_rank is None else w + self.low_rank[0][ids] @ self.low_rank[1]
        if form == "double":
            u = signs(self.dbf_u[ids], self.dbf_m.shape[0], self.dbf_m.dtype) * self.dbf_m
            v = signs(self.dbf_v, cols, self.dbf_m.dtype) * self.dbf_b
            return self.dbf_a[ids].unsqueeze(-1) * (u @ v)
        w = self.factor_u[ids] @ self.factor_v if form == "factored" else self.codewords(ids)
        if hasattr(self, "exact_ids"):
            place = torch.searchsorted(self.exact_ids, ids).clamp(max=len(self.exact_ids) - 1)
            w = torch.where((self.exact_ids[place] == ids).unsqueeze(-1), self.exact_rows[place], w)
        return w

    def planes(self, ids):
        """Rows of the sum of the sign planes."""
        cols, group = self.spec["shape"][1], self.spec["group"]
        scale = self.weight_scale[:, ids]
        if group:
            scale = scale.repeat_interleave(group, dim=-1)[..., :cols]
        else:
            scale = scale.unsqueeze(-1)
        w = (signs(self.weight_packed[:, ids], cols, scale.dtype) * scale).sum(0)
        if self.spec["activations"] == 8 and len(scale) > 1 and not group:
            # `compress` multiplies several planes as whole numbers up to 64, and so does this.
            unit = scale.abs().sum(0).clamp(min=1e-30) / 64
            w = w.sign() * torch.floor((w / unit).abs() + 0.5) * unit
        return w

    @property
    def low_rank(self):
        """The factors of the residual of sign planes, if there is one."""
        if not hasattr(self, "lowrank_u"):
            return None
        if hasattr(self, "lowrank_u_scale"):
            return self.lowrank_u * self.lowrank_u_scale, self.lowrank_v * self.lowrank_v_scale[:, None]
        return self.lowrank_u, self.lowrank_v

    def codewords(self, ids):
        books, words, width = self.pq_codebooks.shape
        slices, cols = self.spec["slices"], self.spec["shape"][1]
        if hasattr(self, "pq_codes"):
            codes = self.pq_codes[ids].long()
        else:  # the digits of the row's number
            codes = ids.unsqueeze(-1) // words ** torch.arange(slices, device=ids.device) % words
        book = torch.arange(slices, device=ids.device) if books > 1 else torch.zeros_like(codes)
        w = self.pq_codebooks[book, codes].flatten(-2)[..., :cols]
        if hasattr(self, "pq_rotation"):
            blocks, size, _ = self.pq_rotation.shape
            w = torch.einsum("...bj,bij->...bi", w.unflatten(-1, (blocks, size)), self.pq_rotation).flatten(-2)
        return w + self.pq_mean if hasattr(self, "pq_mean") else w


class Attention(nn.Module):
    def __init__(self, config, layer, matrix):
        super().__init__()
        self.heads, self.head_dim = config.compress["layers"][layer]["heads"], config.compress["head_dim"]
        for name in ["query", "key", "value", "output"]:
            setattr(self, name, matrix(f"layers.{layer}.attention.{name}"))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x, mask, bias):
        """`x`: `[batch, tokens, hidden]`, `mask`: `[batch, tokens]`. Also returns probabilities by head."""
        if not self.heads:
            return self.norm(self.output(x[..., :0]) + x), None
        split = lambda y: y.unflatten(-1, (len(self.heads), self.head_dim)).transpose(1, 2)
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)
        if bias is not None:
            scores = scores + bias[:, self.heads]
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        probs = scores.softmax(-1)
        context = (probs @ value).transpose(1, 2).flatten(2)
        return self.norm(self.output(context) + x), probs


class FeedForward(nn.Module):
    def __init__(self, config, layer, matrix):
        super().__init__()
        self.up, self.down = matrix(f"layers.{layer}.ffn.up"), matrix(f"layers.{layer}.ffn.down")
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.compress["activation"]]

    def forward(self, x):
        return self.norm(self.down(self.activation(self.up(x))) + x)


class Layer(nn.Module):
    """A block that is gone passes its input on."""

    def __init__(self, config, layer, matrix):
        super().__init__()
        shape = config.compress["layers"][layer]
        self.attention = Attention(config, layer, matrix) if shape["heads"] is not None else None
        self.ffn = FeedForward(config, layer, matrix) if shape["ffn"] is not None else None

    def forward(self, x, mask, bias):
        probs = None
        if self.attention is not None:
            x, probs = self.attention(x, mask, bias)
        return (x if self.ffn is None else self.ffn(x)), probs


def kept(schedule, bins, probs, mask, ids):
    """Places of the tokens that a layer leaves, ascending, `[batch, most]`, and which of these are there.

    The first token stays. The n others are ranked by the attention that they get; rank r stays where bin r * bins / n
    is on, or r is below `least`.
    """
    tokens = mask.shape[1]
    queries = probs[:, :, :1] if schedule["score"] == "first" else probs * mask[:, None, :, None]
    score = queries.sum((1, 2)).float()
    for token in schedule["protect"]:
        score = torch.where(ids == token, score * 2.0**100, score)  # before all others, in the order they had
    score = score.masked_fill(~mask, -1)
    score[:, 0] = math.inf
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(tokens, device=ids.device) - 1
    others = mask.sum(1, keepdim=True) - 1
    bins = torch.tensor([b == "1" for b in bins], device=ids.device)
    place = (rank.clamp(min=0) * len(bins) // others.clamp(min=1)).clamp(max=len(bins) - 1)
    stays = (rank < others) & ((rank < max(schedule["least"], 0)) | bins[place])
    places = torch.where(stays, order, tokens).sort(1).values[:, : int(stays.sum(1).max())]
    return places.clamp(max=tokens - 1), places < tokens


class CompressPreTrainedModel(PreTrainedModel):
    config_class = CompressConfig
    base_model_prefix = "encoder"

    def _init_weights(self, module):
        """Weights come from a checkpoint, all of them."""

    def matrix(self, name):
        return Matrix(self.config.compress["matrices"][name])


class CompressModel(CompressPreTrainedModel):
    """The encoder. Of tokens that were dropped on the way, `last_hidden_state` has the state that they were last in; in
    front of mean and max pooling the mean of those that are left, which changes neither."""

    def __init__(self, config, **_):
        super().__init__(config)
        said = config.compress
        width = said["embedding_size"]
        self.words = self.matrix("words")
        self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, width))
        if config.type_vocab_size:
            self.token_types = nn.Parameter(torch.empty(config.type_vocab_size, width))
        if said["task_type"]:
            self.task_type = nn.Parameter(torch.empty(width))
        self.embedding_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.project = self.matrix("project") if said["project"] else None
        if said["relative_bias"]:
            self.relative_bias = nn.Parameter(torch.empty(32, config.num_attention_heads))
        self.layers = nn.ModuleList(Layer(config, i, self.matrix) for i in range(config.num_hidden_layers))
        self.pooler = self.matrix("pooler") if said["head"]["kind"] == "bare" and said["head"]["pooler"] else None
        self.post_init()

    def embed(self, ids, types):
        said = self.config.compress
        if said["position_pad"] is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        else:  # counted from behind the padding id, padding left out
            live = (ids != said["position_pad"]).long()
            positions = live.cumsum(1) * live + said["position_pad"]
        x = self.words.rows(ids) + self.positions[positions]
        if self.config.type_vocab_size:
            x = x + self.token_types[types if self.config.type_vocab_size > 1 else torch.zeros_like(ids)]
        if said["task_type"]:
            x = x + self.task_type
        x = self.embedding_norm(x)
        return x if self.project is None else self.project(x)

    def score_bias(self, where):
        """MPNet's bias by bucketed distance, `[batch, heads, tokens, tokens]`; `where`: places, `[batch, tokens]`."""
        if not self.config.compress["relative_bias"]:
            return None
        distance = where[:, None, :] - where[:, :, None]
        far = distance.abs()
        log = torch.log(far.clamp(min=1).float() / 8) / math.log(128 / 8) * 8
        bucket = torch.where(far < 8, far, (8 + log.long()).clamp(max=15)) + 16 * (distance > 0)
        return self.relative_bias[bucket].permute(0, 3, 1, 2)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, return_dict=True, **kwargs):
        for asked in ["output_attentions", "output_hidden_states", "inputs_embeds"]:
            if kwargs.get(asked) is not None and kwargs[asked] is not False:
                raise ValueError(f"`{asked}` is not something that this model has")
        batch, tokens = input_ids.shape
        ids = input_ids
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        x = self.embed(ids, torch.zeros_like(ids) if token_type_ids is None else token_type_ids)
        where = torch.arange(tokens, device=ids.device).expand(batch, tokens)
        schedule = self.config.compress["tokens"]
        last = x.new_zeros(batch, tokens + 1, x.shape[-1])  # the row behind is for what is not there
        for i, layer in enumerate(self.layers):
            x, probs = layer(x, mask, self.score_bias(where))
            if schedule is not None and schedule["layers"][i] is not None:
                last = last.scatter(1, where.unsqueeze(-1).expand_as(x), x)
                places, there = kept(schedule, schedule["layers"][i], probs, mask, ids)
                pick = lambda y: y.gather(1, places)
                x = x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
                ids, where, mask = pick(ids), pick(where).masked_fill(~there, tokens), there
        if schedule is not None:
            if self.config.compress["reads"] == "left":
                live = mask.unsqueeze(-1).to(x.dtype)
                mean = (x * live).sum(1, keepdim=True) / live.sum(1, keepdim=True)
                last = mean.expand(-1, tokens + 1, -1)
            x = last.scatter(1, where.unsqueeze(-1).expand_as(x), x)[:, :tokens]
        pooled = None if self.pooler is None else torch.tanh(self.pooler(x[:, 0]))
        output = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)
        return output if return_dict is not False else output.to_tuple()


class WithHead(CompressPreTrainedModel):
    """An encoder and `answer`, which makes an output of its last hidden state and the labels.

    No part of a head has the name of one of the encoder: Transformers takes them for the same.
    """

    def __init__(self, config, **_):
        super().__init__(config)
        self.encoder = CompressModel(config)
        self.build(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, return_dict=True, **kwargs):
        labels = {name: kwargs.pop(name, None) for name in ["labels", "start_positions", "end_positions"]}
        x = self.encoder(input_ids, attention_mask, token_type_ids, **kwargs).last_hidden_state
        output = self.answer(x, **labels)
        return output if return_dict is not False else output.to_tuple()


class CompressForSequenceClassification(WithHead):
    def build(self, config):
        self.dense, self.out = self.matrix("dense"), self.matrix("out")

    def answer(self, x, labels=None, **_):
        logits = self.out(ACTIVATIONS[self.config.compress["head"]["activation"]](self.dense(x[:, 0])))
        loss = None
        if labels is not None and self.config.compress["head"]["regression"]:
            loss = F.mse_loss(logits.squeeze(-1), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class CompressForTokenClassification(WithHead):
    def build(self, config):
        self.out = self.matrix("out")

    def answer(self, x, labels=None, **_):
        logits = self.out(x)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


class CompressForQuestionAnswering(WithHead):
    def build(self, config):
        self.out = self.matrix("out")

    def answer(self, x, start_positions=None, end_positions=None, **_):
        start, end = self.out(x).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)


class CompressForMaskedLM(WithHead):
    def build(self, config):
        width = config.compress["embedding_size"]
        self.dense, self.norm = self.matrix("dense"), nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = None if config.compress["head"]["tied"] else nn.Parameter(torch.empty(config.vocab_size, width))
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def answer(self, x, labels=None, **_):
        x = self.norm(ACTIVATIONS[self.config.compress["head"]["activation"]](self.dense(x)))
        table = self.decoder
        if table is None:
            table = self.encoder.words.rows(torch.arange(self.config.vocab_size, device=x.device))
        logits = x @ table.T + self.bias
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)
