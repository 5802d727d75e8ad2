"""Word vectors and sentence encoders: cutting texts, exactness, folders, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import bilrp
from bilrp.models.words import cut


def spans(text: str, pieces: list[str]) -> list[tuple[int, int]]:
    """Where these pieces stand in the text, one after the other."""
    found, at = [], 0
    for piece in pieces:
        start = text.index(piece, at)
        at = start + len(piece)
        found.append((start, at))
    return found


def test_tokens_belong_to_the_word_that_they_begin_in():
    text = "An unbelievable cat's tail, 16th."
    pieces = ["An", " un", "believ", "able", " cat", "'", "s", " tail", ",", " 16", "th", "."]
    s = cut(text, range(12), pieces, spans(text, pieces))
    assert s.words == ("An", "unbelievable", "cat's", "tail", ",", "16th", ".")
    assert s.groups.tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 5, 6]
    assert s.tokens.tolist() == list(range(12))


def test_special_tokens_are_words_and_blanks_go_with_what_follows():
    s = cut(" a  b ", [0, 1, 2, 3, 4, 5], ["[CLS]", "▁", "a", "▁", "b", "▁"],
            [(0, 0), (0, 1), (1, 2), (2, 4), (4, 5), (5, 6)])  # fmt: skip
    assert s.words == ("[CLS]", "a", "b")
    assert s.groups.tolist() == [0, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="no word"):
        cut("   ", [1], ["▁"], [(0, 3)])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT with random weights in a folder, as transformers and its users save it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    known = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "cat",
        "dog",
        "bit",
        "man",
        "nap",
        "##s",
        ".",
    ]
    tokenizer = Tokenizer(models.WordPiece({w: k for k, w in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    config = BertConfig(vocab_size=12, max_position_embeddings=10, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def as_sentence_transformers(folder, **modes):
    """modules.json and the configuration of the pooling, as sentence-transformers writes them."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    told = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(told))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{k}": v for k, v in modes.items()}
    text = json.dumps({"word_embedding_dimension": 16, "include_prompt": True, **modes})
    (folder / "1_Pooling" / "config.json").write_text(text)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_from_a_folder_is_explained_exactly(bert, pooling):
    as_sentence_transformers(bert, cls_token=pooling == "cls", mean_tokens=pooling == "mean")
    encoder = bilrp.sentence_encoder(bert)
    assert encoder.pooling == pooling
    a, b = encoder.read("The cat naps."), encoder.read("the dog bit the man")
    assert a.words == ("[CLS]", "The", "cat", "naps", ".", "[SEP]")
    e = bilrp.factor(encoder, a.tokens, groups=a.groups).explain(
        bilrp.factor(encoder, b.tokens, groups=b.groups), similarity="cosine"
    )
    with torch.no_grad():
        states = [encoder.transformer(input_ids=s.tokens[None]).last_hidden_state for s in (a, b)]
        x, x2 = (s.mean(1) if pooling == "mean" else s[:, 0] for s in states)
    assert e.similarity == pytest.approx(float(nn.functional.cosine_similarity(x, x2)), abs=1e-5)
    assert e.relevance.shape == (6, 7)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, abs=1e-4)
    assert any("position" in name for name in e.owners)


def test_order_matters_to_an_encoder_with_positions(bert):
    (bert / "modules.json").unlink(missing_ok=True)  # a folder of transformers alone
    encoder = bilrp.sentence_encoder(bert)
    a, b = (encoder.read(t) for t in ("the dog bit the man", "the man bit the dog"))
    with torch.no_grad():
        difference = encoder(a.tokens[None]) - encoder(b.tokens[None])
    assert float(difference.abs().max()) > 1e-4


def test_folders_and_texts_that_do_not_do(bert, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no sentence encoder in"):
            bilrp.sentence_encoder(folder)
    as_sentence_transformers(bert, max_tokens=True)
    with pytest.raises(ValueError, match=r"pools by \['max_tokens'\]"):
        bilrp.sentence_encoder(bert)
    as_sentence_transformers(bert, mean_tokens=True)
    told = json.loads((bert / "modules.json").read_text())
    told.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (bert / "modules.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"a part sentence_transformers\.models\.Dense"):
        bilrp.sentence_encoder(bert)
    (bert / "modules.json").unlink()
    encoder = bilrp.sentence_encoder(bert)
    with pytest.raises(ValueError, match="14 tokens; this encoder takes 10"):
        encoder.read("the cat " * 5 + "naps")
    for text in ("", "  \n", None):
        with pytest.raises(ValueError, match="give a text with words"):
            encoder.read(text)


@pytest.mark.weights
def test_the_published_vectors_are_read_and_explained_exactly():
    model = bilrp.WordVectors.load()
    a = model.read("The cat didn't sit on an unbelievable mat.")
    b = model.read("  Ünïted naïve 🐈 cats ")
    assert a.words == ("The", "cat", "didn't", "sit", "on", "an", "unbelievable", "mat", ".")
    assert b.words == ("Ünïted", "naïve", "🐈", "cats")
    e = bilrp.explain(model, a.tokens, b.tokens, similarity="cosine")
    v, v2 = (model.embedding.weight[s.tokens].double() for s in (a, b))
    scale = len(v) * len(v2) * v.mean(0).norm() * v2.mean(0).norm()
    torch.testing.assert_close(e.relevance.double(), v @ v2.T / scale, rtol=1e-4, atol=1e-7)
    assert e.owners == ("input",)
    assert float(e.relevance.sum()) == pytest.approx(e.similarity, abs=1e-6)
    with pytest.raises(ValueError, match="at most 4096"):
        model.read("word " * 5000)
    with pytest.raises(ValueError, match="give a text with words"):
        model.read(" ")
