"""Tokenizers and chat templates rewritten with meaning: whole files that say something hostile."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

LETTERS = ("a", "b", " ", "", "the", ".", "é", "<s>", "\x00")
REGEXES = (
    "", ".", "a", r"\s+", "(a|aa)+[xy]", r"(\w+\s?)+:", "(.*)*$", r"(?:a+)+b", r"\p{L}+|\p{N}",
    "(", "[", r"\1", "(?=a*)*", "a{1000000}", r"(?<=a+)b", "^", "$", r"(a?){60}a{60}",
    "(?:abc|abcabc)+;",
)  # fmt: skip
SIZES = (0, 1, 2, 30, 1000, 20_000)
NAMES = ("A", "B", "<s>", "nobody")


def patterns() -> st.SearchStrategy[dict[str, str]]:
    return st.one_of(
        st.sampled_from(LETTERS).map(lambda text: {"String": text}),
        st.sampled_from(REGEXES).map(lambda text: {"Regex": text}),
    )


def contents() -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(LETTERS), st.sampled_from(SIZES)).map(lambda o: o[0] * o[1])


def replacing() -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda pattern, content: {"type": "Replace", "pattern": pattern, "content": content},
        patterns(),
        contents(),
    )


def normalizers() -> st.SearchStrategy[dict[str, Any]]:
    table = st.sampled_from(SIZES).map(
        lambda n: base64.b64encode((0).to_bytes(4, "little") + b"a" * n + b"\0").decode()
    )
    plain = st.one_of(
        replacing(),
        st.sampled_from([{"type": name} for name in ("NFKC", "NFD", "Lowercase", "StripAccents")]),
        contents().map(lambda text: {"type": "Prepend", "prepend": text}),
        table.map(lambda text: {"type": "Precompiled", "precompiled_charsmap": text}),
    )
    return nested(plain, "normalizers")


def nested(plain: st.SearchStrategy[dict[str, Any]], name: str) -> st.SearchStrategy:
    """One step, or sequences of several in each other."""
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=6).map(
            lambda steps: {"type": "Sequence", name: steps}
        ),
        max_leaves=8,
    )


def splitters() -> st.SearchStrategy[dict[str, Any]]:
    behaviours = ("Isolated", "Removed", "MergedWithPrevious", "Contiguous", "Evil")
    plain = st.one_of(
        st.builds(
            lambda pattern, how, invert: {
                "type": "Split", "pattern": pattern, "behavior": how, "invert": invert,
            },
            patterns(), st.sampled_from(behaviours), st.booleans(),
        ),
        contents().map(
            lambda t: {"type": "Metaspace", "replacement": t, "prepend_scheme": "always"}
        ),
        st.sampled_from([
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            {"type": "Digits", "individual_digits": True}, {"type": "WhitespaceSplit"},
        ]),
    )  # fmt: skip
    return nested(plain, "pretokenizers")


def decoders() -> st.SearchStrategy[dict[str, Any]]:
    plain = st.one_of(
        replacing(),
        contents().map(lambda t: {"type": "WordPiece", "prefix": t, "cleanup": True}),
        st.sampled_from([{"type": "Fuse"}, {"type": "ByteFallback"}, {"type": "ByteLevel"}]),
        st.sampled_from(SIZES).map(
            lambda n: {"type": "Strip", "content": "a", "start": n, "stop": n}
        ),
    )
    return nested(plain, "decoders")


def around() -> st.SearchStrategy[dict[str, Any]]:
    """Post-processors."""
    pieces = st.one_of(
        st.sampled_from(NAMES).map(lambda n: {"Sequence": {"id": n, "type_id": 0}}),
        st.sampled_from(NAMES).map(lambda n: {"SpecialToken": {"id": n, "type_id": 0}}),
    )
    many = st.tuples(st.lists(pieces, max_size=4), st.sampled_from([1, 2, 400])).map(
        lambda o: o[0] * o[1]
    )
    tokens = st.sampled_from([1, 3, 3000]).map(
        lambda n: {"<s>": {"id": "<s>", "ids": [1] * n, "tokens": ["<s>"] * n}}
    )
    plain = st.builds(
        lambda single, pair, special: {
            "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special,
        },
        many, many, tokens,
    )  # fmt: skip
    return nested(plain, "processors")


def added() -> st.SearchStrategy[list[dict[str, Any]]]:
    one = st.builds(
        lambda content, number, flags: {
            "id": number, "content": content, "single_word": flags[0], "lstrip": flags[1],
            "rstrip": flags[2], "normalized": flags[3], "special": flags[4],
        },
        contents(), st.sampled_from([0, 1, 29, 30, 10**6, 2**31]),
        st.lists(st.booleans(), min_size=5, max_size=5),
    )  # fmt: skip
    return st.lists(one, max_size=4)


def filling() -> st.SearchStrategy[Any]:
    counts = st.sampled_from([0, 1, 7, 1 << 21, 2_000_000_000, 2**63])
    strategy = st.one_of(st.just("BatchLongest"), counts.map(lambda n: {"Fixed": n}))
    return st.builds(
        lambda how, multiple: {
            "strategy": how, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<pad>",
        },
        strategy, st.one_of(st.none(), counts),
    )  # fmt: skip


def shortening() -> st.SearchStrategy[Any]:
    counts = st.sampled_from([0, 1, 2, 2**40])
    return st.builds(
        lambda most, stride: {
            "max_length": most, "stride": stride, "strategy": "LongestFirst", "direction": "Right",
        },
        counts, counts,
    )  # fmt: skip


@st.composite
def tokenizer(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """tokenizer.json with one to three parts of it of another meaning."""
    parts = {
        "normalizer": normalizers(), "pre_tokenizer": splitters(), "decoder": decoders(),
        "post_processor": around(), "added_tokens": added(), "padding": filling(),
        "truncation": shortening(),
    }  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=3, unique=True))
    return json.dumps(whole | {name: draw(parts[name]) for name in chosen}).encode()


BEGIN = "{% set n = namespace(x=(1,), y=(1,), t='a') %}"
STEPS = (
    "{% set n.x = (n.x, n.x) %}", "{% set n.y = (n.y, n.y) %}", "{% set n.t = n.t ~ n.t %}",
    "{% set n.t = n.t * 1000 %}", "{{ n.t }}", "{{ messages[0].content }}",
)  # fmt: skip
ENDS = (
    "{{ {n.x: 1} }}", "{{ n.x == n.y }}", "{{ n.t|int(0, 16) }}", "{{ n.t|length }}", "{{ n.x }}",
    "{{ n.t|tojson }}", "{{ n.t|center(10 ** 12) }}", "{{ '%10000000000d' % 1 }}",
    "{{ n.t.join(n.t) }}", "{{ 2 ** (3 ** (3 ** 20)) }}", "{{ range(10 ** 12)|list }}",
    "{{ ''.__class__ }}", "{{ raise_exception('no') }}", "{{ bos_token }}", "{{ n.t|urlize }}",
    "{{ strftime_now('%Y') }}", "{{ '{0.__class__}'.format(n) }}", "{{ lipsum(n=10 ** 9) }}",
)  # fmt: skip


@st.composite
def template(draw: st.DrawFn) -> str:
    """A chat template of steps that grow, so and so often, and of what is done with it."""
    steps = "".join(draw(st.lists(st.sampled_from(STEPS), max_size=3)))
    times, depth = draw(st.sampled_from([0, 3, 40, 99_999])), draw(st.integers(0, 3))
    loops = f"{{% for i in range({times}) %}}" * depth
    end = "".join(draw(st.lists(st.sampled_from(ENDS), max_size=2)))
    return f"{BEGIN}{loops}{steps}{'{% endfor %}' * depth}{end}"
