"""Token ids of other programs: which row of their embedding is which of our tokens, and our tokens as their
tokenizer.json.

Where a folder says its ids, it does so in tokens.json (a JSON object, token → id) or in tokenizer.json (the format of
Hugging Face's tokenizers library). A folder that says nothing and has a vocabulary of HyenaDNA's size has HyenaDNA's
ids, as Caduceus and the models trained by its code do. Torch-free.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dnamamba.alphabet import ASCII_TO_TOKEN, BASES, TOKEN_BITS, TOKENS, N
from dnamamba.errors import InputError
from dnamamba.formats.files import read_json

IDS, TOKENIZER = "tokens.json", "tokenizer.json"
HYENADNA = {
    "[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6,
    "A": 7, "C": 8, "G": 9, "T": 10, "N": 11,
}  # fmt: skip
HYENADNA_SIZES = (12, 16)
"""Rows of an embedding with HyenaDNA's ids: the tokens, and the tokens padded to a multiple of 8."""
_UNKNOWN_BASE = ("N", "[UNK]", "<unk>")
"""Who stands for an unknown base, the first that there is."""


class TokenRows(NamedTuple):
    """Where our tokens are in another program's embedding."""

    rows: list[int | None]
    """For each of our tokens its row; None where there is no such token"""
    source: str
    """Who said so, for people: a file, or HyenaDNA"""


def rows_of_tokens(folder: Path, rows: int) -> TokenRows:
    """Of a folder whose embedding has `rows` rows.

    Raises `InputError` naming the file where an id is missing for a base or lies outside the embedding, where tokens
    are of several bases, and where nothing says the ids.
    """
    ids, path = _ids(folder, rows)
    source = path or folder
    for base in TOKENS[:BASES]:
        if base not in ids:
            raise InputError(f"{source}: no token {base}; dnamamba reads models whose tokens are single bases")
    unknown = next((ids[name] for name in _UNKNOWN_BASE if name in ids), None)
    found = [unknown if token == N else ids.get(name) for token, name in enumerate(TOKENS)]
    for name, row in zip(TOKENS, found, strict=True):
        if row is not None and not (isinstance(row, int) and not isinstance(row, bool) and 0 <= row < rows):
            raise InputError(f"{source}: id {row!r} of the token {name} is none of the embedding's {rows} rows")
    if len({*found[:BASES]}) < BASES:
        raise InputError(f"{source}: the tokens A, C, G, T share an id")
    return TokenRows(found, path.name if path else "HyenaDNA")


def _ids(folder: Path, rows: int) -> tuple[dict[str, Any], Path | None]:
    """Token → id, and the file that says so; None where they are HyenaDNA's."""
    if (path := folder / IDS).is_file():
        return read_json(path), path
    if (path := folder / TOKENIZER).is_file():
        return _of_tokenizer(path), path
    if rows in HYENADNA_SIZES:
        return HYENADNA, None
    raise InputError(
        f"{folder}: a vocabulary of {rows} tokens, and no {TOKENIZER} that says which are A, C, G, T; "
        f'add {IDS} with the ids, such as {{"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}}'
    )


def _of_tokenizer(path: Path) -> dict[str, Any]:
    model = read_json(path).get("model")
    ids = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(ids, dict):
        raise InputError(f"{path}: expected model.vocab, a JSON object of tokens and their ids")
    bases = {*"ACGTN"}
    if several := sorted(token for token in ids if len(token) > 1 and bases.issuperset(token)):
        raise InputError(
            f"{path}: tokens of several bases ({', '.join(several[:3])}{', …' if len(several) > 3 else ''}); "
            "dnamamba reads models whose tokens are single bases"
        )
    return ids


def tokenizer_json() -> dict[str, Any]:
    """Our tokens in the format of Hugging Face's tokenizers library: a token a letter, lower case as upper case, IUPAC
    codes as N, U as T. No token is put around a sequence, and decoded bases stand without blanks between them."""
    letters: dict[str, str] = dict.fromkeys(TOKENS[: N + 1], "")
    for code in range(128):
        token = int(ASCII_TO_TOKEN[code]) & TOKEN_BITS
        if token <= N and chr(code) not in "Uu":
            letters[TOKENS[token]] += chr(code)
    letters["T"] += "Uu"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": TOKENS[token], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for token in range(N + 1, len(TOKENS))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": f"[{found}]"}, "content": base}
                for base, found in letters.items()
            ],
        },
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel", "vocab": {name: token for token, name in enumerate(TOKENS)}, "unk_token": "[UNK]"
        },
    }  # fmt: skip


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json next to it. Padding goes to the left, where it changes no state: so batches generate."""
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "mask", "bos", "cls", "sep", "unk")}
    return special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
