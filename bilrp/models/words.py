"""Sentences: published word vectors, and a sentence encoder that a reader has in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilrp._names import needs

VECTORS, TOKENIZER = "wordllama/vectors.safetensors", "wordllama/tokenizer.json"
LONGEST = 4096  # tokens; sentences have some tens
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True, eq=False)
class Sentence:
    """A text cut into tokens, and which tokens make which word.

    Attributes
    ----------
    tokens : Tensor (T,) of int64
        As the encoder takes them.
    pieces : tuple of str
        The tokens as the tokenizer writes them.
    words : tuple of str
        Words and marks of the text; special tokens such as [CLS] by themselves.
    groups : Tensor (T,) of int64
        Number of each token's word: `bilrp.factor(model, s.tokens, groups=s.groups)`.
    """

    tokens: Tensor
    pieces: tuple[str, ...]
    words: tuple[str, ...]
    groups: Tensor


def cut(text: str, ids: Sequence[int], pieces: Sequence[str], spans: Sequence[Any]) -> Sentence:
    """The sentence of a text whose tokens lie at these spans (start, end) of its characters.

    A token that begins in a word belongs to it; a blank by itself to the word that follows.

    Raises
    ------
    ValueError
        If there is no token, or no word that the tokens could belong to.
    """
    found = [m.span() for m in _WORD.finditer(text)]
    keys: list[tuple] = []
    for k, (start, end) in enumerate(spans):
        inside = [n for n, (a, b) in enumerate(found) if a < end and b > start]
        if start == end:
            keys.append(("special", k))
        elif inside:
            keys.append(("word", inside[0]))
        else:  # a blank: with what follows, at the end with what stands before
            later = [n for n, (a, _) in enumerate(found) if a >= end]
            keys.append(("word", later[0] if later else len(found) - 1))
    if not keys or not found:
        raise ValueError(f"the text has no word in it: {text!r}")
    order = list(dict.fromkeys(keys))
    names = [pieces[n] if kind == "special" else text[slice(*found[n])] for kind, n in order]
    groups = torch.tensor([order.index(key) for key in keys])
    return Sentence(torch.tensor(list(ids)), tuple(pieces), tuple(names), groups)


def _checked(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"give a text with words in it, got {text!r}")
    return text


class WordVectors(nn.Module):
    """Tokens (N, T) of int64 to the mean of their vectors (N, d): a sentence without its order.

    Parameters
    ----------
    vectors : Tensor (V, d)
        One for each token of the vocabulary.
    tokenizer : tokenizers.Tokenizer

    Examples
    --------
    >>> model = bilrp.WordVectors.load()
    >>> a, b = model.read("a cat on a mat"), model.read("the kitten lies on a rug")
    >>> e = bilrp.explain(model, a.tokens, b.tokens, similarity="cosine")
    >>> e.plot(tokens=(a.pieces, b.pieces))
    """

    def __init__(self, vectors: Tensor, tokenizer: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors.float(), freeze=True)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls) -> WordVectors:
        """The published static embeddings of wordllama 0.4.0 (MIT): 32,000 tokens, 256 numbers.

        Raises
        ------
        bilrp.registry.DataError
            If they are neither here nor can be fetched; says where to put them.
        """
        with needs("words"):
            from safetensors.torch import load_file
            from tokenizers import Tokenizer

        from bilrp.book.fetch import fetch

        vectors = load_file(fetch(VECTORS))["embedding.weight"]
        return cls(vectors, Tokenizer.from_file(str(fetch(TOKENIZER)))).eval()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).mean(1)

    def read(self, text: str) -> Sentence:
        """Cut a text into tokens.

        Raises
        ------
        ValueError
            For an empty text, or one of more than 4,096 tokens.
        """
        e = self.tokenizer.encode(_checked(text), add_special_tokens=False)
        if len(e.ids) > LONGEST:
            raise ValueError(f"the text has {len(e.ids)} tokens; at most {LONGEST} are taken")
        return cut(text, e.ids, e.tokens, e.offsets)


class SentenceEncoder(nn.Module):
    """Tokens (N, T) of int64 to one vector (N, d): a transformer of transformers, pooled.

    Parameters
    ----------
    transformer : nn.Module
        Takes `inputs_embeds` and gives `last_hidden_state`, as transformers' encoders do.
    tokenizer : transformers.PreTrainedTokenizerFast
    pooling : str
        "mean" over all tokens, or "cls", the first one.
    """

    def __init__(self, transformer: nn.Module, tokenizer: Any, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f'pooling must be "mean" or "cls", got {pooling!r}')
        self.transformer, self.tokenizer, self.pooling = transformer, tokenizer, pooling

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}"

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.transformer(input_ids=tokens).last_hidden_state
        return states.mean(1) if self.pooling == "mean" else states[:, 0]

    def read(self, text: str) -> Sentence:
        """Cut a text into tokens, with those that the tokenizer adds, such as [CLS].

        Raises
        ------
        ValueError
            For an empty text, or one longer than the encoder takes.
        """
        made = self.tokenizer(_checked(text), return_offsets_mapping=True)
        config: Any = self.transformer.config
        ids, longest = made["input_ids"], config.max_position_embeddings
        if len(ids) > longest:
            raise ValueError(f"the text has {len(ids)} tokens; this encoder takes {longest}")
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return cut(text, ids, pieces, made["offset_mapping"])


def sentence_encoder(folder: str | Path) -> SentenceEncoder:
    """A sentence encoder from a folder in the layout of sentence-transformers or transformers.

    Parameters
    ----------
    folder : str or Path
        With `config.json`, weights in safetensors and a tokenizer; in a folder of
        sentence-transformers, `modules.json` says where these are and how tokens are pooled.
        Nothing is downloaded, and no code of the folder runs.

    Returns
    -------
    SentenceEncoder
        Where the folder ends with a normalisation, explain it with similarity="cosine".

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no model in it.
    ValueError
        For a part other than a transformer, pooling (mean or first token) and normalisation, whose
        similarity this would not be.
    """
    folder = Path(folder)
    pooling, place = "mean", folder
    if (folder / "modules.json").is_file():
        for part in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
            kind, inside = part["type"].rpartition(".")[2], folder / part["path"]
            if kind == "Transformer":
                place = inside
            elif kind == "Pooling":
                pooling = _pooling(inside / "config.json")
            elif kind != "Normalize":
                raise ValueError(
                    f"{folder} has a part {part['type']}; Transformer, Pooling and Normalize are "
                    "what can be explained"
                )
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"no sentence encoder in {folder}: there is no {place / 'config.json'}. Copy the whole "
            "folder of a published model, with config.json, model.safetensors and its tokenizer"
        )
    with needs("words"):
        from transformers import AutoModel, AutoTokenizer
    options: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
    transformer = AutoModel.from_pretrained(
        place, use_safetensors=True, dtype=torch.float32, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True, **options)
    return SentenceEncoder(transformer, tokenizer, pooling).eval().requires_grad_(False)


def _pooling(path: Path) -> str:
    told = json.loads(path.read_text(encoding="utf-8"))
    modes = {k.removeprefix("pooling_mode_") for k, v in told.items() if v is True}
    modes &= {"cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens",
              "weightedmean_tokens", "lasttoken"}  # fmt: skip
    known = {frozenset({"mean_tokens"}): "mean", frozenset({"cls_token"}): "cls"}
    if frozenset(modes) not in known:
        raise ValueError(f"{path} pools by {sorted(modes)}; mean_tokens or cls_token is needed")
    return known[frozenset(modes)]
