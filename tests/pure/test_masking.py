"""Secrets are masked in whatever form, however a stream is cut, and nothing else is touched."""

import base64
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from worker.masking import (
    ADD_MASK,
    MASK,
    MAX_ADD_MASK_BYTES,
    MAX_ADDED,
    ExecutionMasker,
    Masker,
    MaskingStream,
)
from worker.secret import Secret
from worker.secret_forms import MAX_ENCODED_LINES, MIN_LONG_CHARACTERS, forms
from worker.secret_index import (
    HEAD_BYTES,
    MAX_TABLE_PATTERNS,
    MIN_SIEVED_BYTES,
    SPREAD,
    UNSIEVED_BYTES,
)

TOKEN = "tok-3f9Zq/81+xYw"  # noqa: S105  opens nothing
KEY = "-----BEGIN KEY-----\n" + "\n".join(f"{n:02d}aZ/k+q9" * 6 for n in range(8)) + "\nend\n"

# Few letters, so that secrets overlap, repeat and contain one another.
secret_texts = st.one_of(
    st.text("ab", max_size=20),
    st.text("ab\n", max_size=20),
    st.text("aB1/+ é'\"\\$%\n", max_size=30),
    st.text(st.characters(exclude_characters="*"), min_size=4, max_size=30),
)
secret_sets = st.lists(secret_texts, min_size=1, max_size=4)


def a_masker(texts: Iterable[str]) -> Masker:
    return Masker(Secret(text) for text in texts)


def forms_of(texts: Iterable[str]) -> list[bytes]:
    return sorted({form for text in texts for form in forms(text)})


def joined(form: bytes) -> bytes:
    return form.replace(b"\r", b"").replace(b"\n", b"")


@st.composite
def streams(draw: st.DrawFn, texts: list[str]) -> bytes:
    """Forms, whole and in part and broken over lines, between letters of their own kind."""
    pieces = [b"\n", b"\r\n", b" ", b"x", *(text.encode(errors="replace") for text in texts)]
    pieces += forms_of(texts)
    stream = b""
    for _ in range(draw(st.integers(0, 8))):
        piece = draw(st.sampled_from(pieces))
        match draw(st.integers(0, 4)):
            case 0:
                piece = piece[: draw(st.integers(0, len(piece)))]
            case 1:
                piece = piece[draw(st.integers(0, len(piece))) :]
            case 2:
                ends = draw(st.lists(st.integers(0, len(piece)), max_size=3))
                for end in sorted(ends, reverse=True):
                    breaks = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
                    piece = piece[:end] + breaks + piece[end:]
            case 3:
                piece += draw(st.text("ab\n", max_size=4)).encode()
            case _:
                pass
        stream += piece
    return stream


@st.composite
def secrets_and_streams(draw: st.DrawFn) -> tuple[list[str], bytes]:
    texts = draw(secret_sets)
    return texts, draw(streams(texts))


def cut(data: bytes, ends: Iterable[int]) -> list[bytes]:
    at = [0, *sorted(min(end, len(data)) for end in ends), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(at)]


cuts = st.lists(st.integers(0, 300), max_size=12)


def masked(stream: MaskingStream, pieces: Iterable[bytes]) -> bytes:
    return b"".join(stream.feed(piece).data for piece in pieces) + stream.flush().data


def reference(texts: Iterable[str], data: bytes) -> bytes:
    """What is to come out: each place is tried with an expression for each form."""
    expressions = []
    for form in forms_of(texts):
        plain = joined(form)
        expressions.append((re.compile(re.escape(form)), len(form), False))
        if len(plain.decode(errors="ignore")) >= MIN_LONG_CHARACTERS:
            for skip in range(HEAD_BYTES):
                rest = plain[skip:]
                parts = [re.escape(bytes([byte])) for byte in rest]
                broken = b"".join(parts[:HEAD_BYTES]) + b"".join(
                    rb"[\r\n]*" + part for part in parts[HEAD_BYTES:]
                )
                expressions.append((re.compile(broken, re.DOTALL), len(rest), skip > 0))
    out, at = bytearray(), 0
    while at < len(data):
        begins_line = data[:at].endswith(b"\n") or at == 0
        ends = [
            match.end()
            for expression, length, needs_line in expressions
            if (begins_line or not needs_line)
            and (match := expression.match(data, at))
            and match.end() - at <= SPREAD * length
        ]
        if ends:
            out += MASK
            at = max(ends)
        else:
            out.append(data[at])
            at += 1
    return bytes(out)


# What is masked


@example((["ababababab"], b"ababababababababababababababab"), [3, 7])
@example((["aaaaaaaaaaaaaaa"], b"aaaa\naaaaaaaaaaa" * 3), [5, 18])
@example((["abcdef", "cdefghijklmn", "ghijklmn"], b"abcdefghijklmn"), [7])
@example((["abababab\nb", "abababab"], b"abababab\nabababab\nb"), [8, 9])
@given(secrets_and_streams(), cuts)
def test_the_first_form_is_masked_and_of_those_that_begin_together_the_longest(
    known: tuple[list[str], bytes], ends: list[int]
) -> None:
    texts, data = known

    found = masked(MaskingStream(a_masker(texts)), cut(data, ends))

    assert found == reference(texts, data)


@given(secrets_and_streams(), cuts)
def test_no_form_is_left(known: tuple[list[str], bytes], ends: list[int]) -> None:
    texts, data = known

    found = masked(MaskingStream(a_masker(texts)), cut(data, ends))

    assert [form for form in forms_of(texts) if form in found] == []


@given(secret_texts, st.data())
def test_each_form_is_masked_between_other_bytes(text: str, data: st.DataObject) -> None:
    assume(forms(text))
    form = data.draw(st.sampled_from(sorted(forms(text))))

    assert a_masker([text]).mask(b"\x00" + form + b"\x01") == b"\x00***\x01"


def test_each_secret_is_one_mask() -> None:
    masker = a_masker(["first-secret-1", "second"])

    found = masker.mask(b"first-secret-1second second,first-secret-1first-secret-1")

    assert found == b"****** ***,******"


def test_a_larger_set_is_masked_as_a_smaller_one() -> None:
    texts = [f"{number:05d}-secret-{number * 7919}" for number in range(800)]
    masker = a_masker(texts)
    assert len(masker.indexes[0]._heads) > MAX_TABLE_PATTERNS

    found = masker.mask("\n".join(texts).encode())

    assert found == b"\n".join([MASK] * len(texts))


# Secrets of these tests have none.
LONG = b"*" * MIN_SIEVED_BYTES


def a_sieving_masker(texts: Iterable[str]) -> Masker:
    """One that is behind what is searched without a look ahead."""
    masker = a_masker(texts)
    masker.mask(b"*" * UNSIEVED_BYTES)
    return masker


@given(secret_sets, st.data())
def test_in_a_long_text_the_same_is_masked_as_in_a_short_one(
    texts: list[str], data: st.DataObject
) -> None:
    found = sorted({form for text in texts for form in forms(text)})
    parts = st.sampled_from([*found, *(form[:3] for form in found), b"\n", b"\r\n", b"a"])
    text = b"".join(data.draw(st.lists(parts, max_size=6)))
    masker = a_sieving_masker(texts)

    masked = masker.mask(LONG + b"\n" + text + b"\n" + LONG)

    assert masked == LONG + b"\n" + masker.mask(text + b"\n") + LONG


@pytest.mark.parametrize("count", [1, 20, 60, 100, 400])
def test_each_of_many_secrets_is_found_in_a_long_text(count: int) -> None:
    texts = [f"{number * 7919 % 99991:05d}-secret-{number}" for number in range(count)]
    masker = a_sieving_masker(texts)
    filler = b"*" * UNSIEVED_BYTES
    for text in (texts[0], texts[count // 2], texts[-1]):
        whole = text.encode()
        wrapped = whole[:3] + b"\n" + whole[3:]

        assert masker.mask(LONG + whole + LONG) == LONG + MASK + LONG
        masker.mask(filler)
        assert masker.mask(LONG + wrapped + LONG) == LONG + wrapped[:4] + MASK + LONG
        masker.mask(filler)


def test_what_is_added_bit_by_bit_is_found_in_a_long_text() -> None:
    masker = ExecutionMasker(a_masker([TOKEN]))
    for text in (b"one-that-is-added", b"and-then-another"):
        masker.add(Secret(text.decode()))
        masker.mask(b"*" * UNSIEVED_BYTES)

        assert masker.mask(LONG + text + LONG) == LONG + MASK + LONG


@pytest.mark.parametrize("text", ["", "a", "abcde", "  abcde \n", "abc\nab", " " * 40, "éééöö"])
def test_a_value_under_6_characters_is_never_masked(text: str) -> None:
    masker = a_masker([text])
    data = f"{text} [{text}] abcde".encode()

    assert forms(text) == frozenset()
    assert masker.mask(data) == data


@pytest.mark.parametrize("text", ["abcdef", "sécret", "a b'c\"", "%~/+@x"])
def test_a_value_of_6_characters_is_masked(text: str) -> None:
    assert a_masker([text]).mask(f"<{text}>".encode()) == b"<***>"


def test_encoded_forms_are_looked_for_from_12_characters_on() -> None:
    short, long = "a/b'c\"d+e f", "a/b'c\"d+e fg"

    assert len(short) == MIN_LONG_CHARACTERS - 1
    assert forms(short) == frozenset([short.encode()])
    assert quote(long, safe="").encode() in forms(long)
    assert json.dumps(long)[1:-1].encode() in forms(long)


# Its beginning is found nowhere else, so that no mask begins before it.
marked_texts = st.text(
    st.characters(codec="utf-8", exclude_characters="<~|\r\n"), min_size=MIN_LONG_CHARACTERS
).map(lambda text: f"<~|{text}|")


@given(marked_texts, st.binary(max_size=9), st.binary(max_size=9))
def test_in_base64_less_than_a_character_at_each_end_is_left(
    text: str, before: bytes, after: bytes
) -> None:
    whole = before + text.encode() + after
    plain, url_safe = base64.b64encode(whole), base64.urlsafe_b64encode(whole)
    start, end = len(before) * 8, (len(whole) - len(after)) * 8
    first, last = -(-start // 6), end // 6
    masker = a_masker([text])

    assert masker.mask(plain) == plain[:first] + MASK + plain[last:]
    assert masker.mask(url_safe) == url_safe[:first] + MASK + url_safe[last:]


# As printed by: Python, curl, a browser's URLSearchParams, encodeURIComponent, encodeURI, PHP, Go,
# jq, bash 5.2 (set -x, printf %q, declare -p, in a locale without UTF-8), dash (export -p).
SIGNS = "pä ss'w/o\"r+d$1&~(2)"


@pytest.mark.parametrize(
    "printed",
    [
        r"p%C3%A4%20ss%27w%2Fo%22r%2Bd%241%26~%282%29",
        r"p%c3%a4%20ss%27w%2fo%22r%2bd%241%26~%282%29",
        r"p%C3%A4%20ss%27w/o%22r%2Bd%241%26~%282%29",
        r"p%C3%A4+ss%27w%2Fo%22r%2Bd%241%26%7E%282%29",
        r"p%C3%A4%20ss'w%2Fo%22r%2Bd%241%26~(2)",
        r"p%C3%A4%20ss'w/o%22r+d$1&~(2)",
        r"p\u00e4 ss'w/o\"r+d$1&~(2)",
        r"p\u00E4 ss'w/o\"r+d$1&~(2)",
        r"p\u00e4 ss'w\/o\"r+d$1&~(2)",
        r"pä ss'w/o\"r+d$1\u0026~(2)",
        r"pä ss'w/o\"r+d$1&~(2)",
        r"pä ss'\''w/o" + r'"r+d$1&~(2)',
        r"pä\ ss\'w/o\"r+d\$1\&~\(2\)",
        r"pä ss'w/o\"r+d\$1&~(2)",
        r"p\303\244 ss\'w/o" + r'"r+d$1&~(2)',
        "pä ss'\"'\"'w/o\"r+d$1&~(2)",
    ],
)
def test_what_programs_make_of_a_secret_is_masked(printed: str) -> None:
    assert a_masker([SIGNS]).mask(f"'{printed}'".encode()) == b"'***'"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("'PATH=~/a:~b~c'", r"\'PATH=\~/a:\~b~c\'"),  # bash, printf %q
        ("'PATH=~/a:~b~c''", "\"'\"'PATH=~/a:~b~c'\"''\""),  # dash, export -p
        ("'PATH=~/a:~b~c''", "''\"'\"'PATH=~/a:~b~c'\"'\"''\"'\"''"),  # Python, shlex.quote
    ],
)
def test_what_shells_write_in_some_places_only_is_masked(text: str, printed: str) -> None:
    assert a_masker([text]).mask(printed.encode()).strip(b"\"'\\") == MASK


@pytest.mark.parametrize(
    "printed",
    [
        r"$'öne\ntwo\t\'three\'\E'",
        r"$'\303\266ne\ntwo\t\'three\'\E'",
        r"öne\ntwo\t'three'\u001b",
        r"%C3%B6ne%0Atwo%09%27three%27%1B",
    ],
)
def test_control_characters_are_masked_as_programs_write_them(printed: str) -> None:
    found = a_masker(["öne\ntwo\t'three'\x1b"]).mask(printed.encode())

    assert found.strip(b"$'") == MASK


def test_what_is_learned_is_masked_by_all_that_build_on_it_and_found_once() -> None:
    base = a_masker(["known-before-all"])
    job = Masker(base=base)
    execution = ExecutionMasker(job)

    job.learn([Secret("learned-later\n"), Secret(" known-before-all\n")])
    before = len(job.indexes)
    job.learn([Secret("learned-later")])

    assert execution.mask(b"known-before-all, learned-later") == b"***, ***"
    assert base.mask(b"learned-later") == b"learned-later"
    assert len(job.indexes) == before == 3


# Lines


def test_each_line_of_a_secret_is_masked_alone_and_all_together_are_one() -> None:
    masker = a_masker([KEY])

    for line in KEY.splitlines()[1:-1]:
        assert masker.mask(f"> {line} <".encode()) == b"> *** <"
        assert MASK in masker.mask(base64.b64encode(line.encode()))
    assert masker.mask(KEY.encode()) == b"***\n"
    assert masker.mask(KEY.replace("\n", "\r\n").encode()) == b"***\r\n"
    assert masker.mask(b"end of it") == b"end of it"
    # Every other key begins so too.
    assert masker.mask(b"-----BEGIN KEY-----\n") == b"-----BEGIN KEY-----\n"


def test_lines_of_a_secret_are_masked_in_what_is_cut_off() -> None:
    printed = json.dumps({"key": KEY})[:400] + "..."

    found = a_masker([KEY]).mask(printed.encode())

    assert not [line for line in KEY.splitlines()[1:6] if line.encode() in found]


def test_a_key_written_in_one_line_is_masked_in_many() -> None:
    assert a_masker([KEY.strip().replace("\n", "\\n")]).mask(KEY.encode()).count(b"aZ") == 0


@pytest.mark.parametrize("text", ["a\nbc\nd\ne\nfg\nh", "a\nbc\nd\ne\nfg\nhijk\nlmnop"])
def test_a_secret_of_short_lines_is_masked_as_a_whole(text: str) -> None:
    masker = a_masker([text])

    assert masker.mask(f"[{text}]".encode()) == b"[***]"
    assert masker.mask("[{}]".format(text.replace("\n", "\r\n")).encode()) == b"[***]"
    assert masker.mask(text[:-1].encode()) == text[:-1].encode()


def test_a_long_document_is_masked_line_by_line() -> None:
    lines = [f"{number} of the lines" for number in range(100, MAX_ENCODED_LINES + 101)]

    found = forms("\n".join(lines))

    assert found.issuperset(line.encode() for line in lines)
    assert len(found) < 2 * len(lines)


@given(st.integers(0, 40), st.integers(HEAD_BYTES, 40), st.sampled_from(["\n", "\r\n"]))
def test_a_secret_broken_over_lines_is_masked_but_for_a_few_characters_before_the_first_break(
    column: int, width: int, line_break: str
) -> None:
    text = f"{'.' * column}{TOKEN}|"
    folded = line_break.join(textwrap.wrap(text, width, break_on_hyphens=False))
    before = min(width - column % width, len(TOKEN))

    found = a_masker([TOKEN]).mask(folded.encode()).decode()

    left = found.replace("\r", "").replace("\n", "").replace(".", "")
    assert left == ("***|" if before >= HEAD_BYTES else f"{TOKEN[:before]}***|")


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("before", range(1, len(TOKEN)))
def test_a_secret_broken_anywhere_is_masked_wherever_the_stream_is_cut(
    before: int, line_break: str
) -> None:
    masker = a_masker([TOKEN])
    data = f"a {TOKEN[:before]}{line_break}{TOKEN[before:]} {TOKEN}".encode()
    left = TOKEN[:before] + line_break if before < HEAD_BYTES else ""

    for end in range(len(data)):
        assert masked(MaskingStream(masker), cut(data, [end])) == f"a {left}*** ***".encode()


@pytest.mark.parametrize("skip", range(1, HEAD_BYTES))
def test_the_rest_of_a_secret_is_masked_at_the_beginning_of_a_line_only(skip: int) -> None:
    masker, rest = a_masker([TOKEN]), TOKEN[skip:]

    assert masker.mask(f"{rest}\n{rest} {rest}\r{rest}".encode()) == (
        f"***\n*** {rest}\r{rest}".encode()
    )


@pytest.mark.parametrize("width", [16, 64, 76])
def test_base64_in_lines_is_masked(width: int) -> None:
    encoded = base64.b64encode(b"user:" + KEY.encode() + b"-").decode()
    wrapped = "\n".join(textwrap.wrap(encoded, width))

    found = a_masker([KEY]).mask(wrapped.encode())

    assert re.fullmatch(rb"dXNlcjo\*\*\*[\nA-Za-z0-9=]{,5}", found)


@pytest.mark.parametrize("text", ["elevenchars", "élévénçhärs"])
def test_a_short_secret_is_not_looked_for_over_lines(text: str) -> None:
    assert a_masker([text]).mask_text(f"{text[:8]}\n{text[8:]}") == f"{text[:8]}\n{text[8:]}"


def test_lines_between_that_are_empty_are_few() -> None:
    masker = a_masker([TOKEN])
    half = len(TOKEN) // 2
    within = "\n" * ((SPREAD - 1) * len(TOKEN))

    assert masker.mask((TOKEN[:half] + within + TOKEN[half:]).encode()) == MASK
    assert MASK not in masker.mask((TOKEN[:half] + within + "\n" + TOKEN[half:]).encode())


# Streams


@example(["aaaaaaaaaaaa"], [":", "\n"])
@given(
    st.lists(st.text("abc\n", max_size=20), max_size=3),
    st.lists(st.text("xyz \r\n*:", max_size=40), max_size=8),
)
def test_what_no_secret_begins_in_passes_unchanged_and_at_once(
    texts: list[str], pieces: list[str]
) -> None:
    execution = ExecutionMasker(a_masker(texts))
    stream = MaskingStream(execution)
    received = 0

    for piece in pieces:
        received += len(piece)
        result = stream.feed(piece.encode())
        assert (result.data, result.consumed) == (piece.encode(), received)
    assert stream.flush().data == b""


@pytest.mark.parametrize(
    "piece", ["Password: ", "[y/N] ", "done\n", "the tok\n", "tok-3\n", "-----\n", "---- t\r\n"]
)
def test_a_prompt_or_a_line_is_not_held_back(piece: str) -> None:
    stream = MaskingStream(a_masker([TOKEN, KEY]))

    assert stream.feed(piece.encode()).data == piece.encode()


@pytest.mark.parametrize(
    ("piece", "held"),
    [("a tok", "tok"), ("a tok-3f\n", "tok-3f\n"), ("-----B", "-----B"), ("t", "t")],
)
def test_no_more_is_held_back_than_what_may_be_the_beginning_of_a_secret(
    piece: str, held: str
) -> None:
    stream = MaskingStream(a_masker([TOKEN, KEY]))

    result = stream.feed(piece.encode())

    assert result.data == piece.removesuffix(held).encode()
    assert result.consumed == len(piece) - len(held)
    assert stream.feed(b"!").data == f"{held}!".encode()


@given(secrets_and_streams(), st.integers(0, 300))
def test_what_is_held_back_is_bounded_by_the_longest_form(
    known: tuple[list[str], bytes], end: int
) -> None:
    texts, data = known
    longest = max(map(len, forms_of(texts)), default=0)

    result = MaskingStream(a_masker(texts)).feed(data[:end])

    held = len(data[:end]) - result.consumed
    assert held <= SPREAD * longest
    assert held == 0 or result.consumed < len(data)


def test_line_breaks_without_end_are_not_held_back() -> None:
    stream = MaskingStream(a_masker([TOKEN]))
    stream.feed(TOKEN[:10].encode())

    assert stream.feed(b"\n" * 100).consumed == 110


def test_the_end_of_a_stream_gives_all_of_it() -> None:
    stream = MaskingStream(a_masker([TOKEN]))
    stream.feed(b"and tok-3f")

    assert stream.flush().data == b"tok-3f"
    assert MaskingStream(a_masker(["abcdef", "abcdefghi"])).flush(b"abcdefg").data == b"***g"


@example((["aaaaaaaaaaaaaaa"], b"\naaaa\naaaaaaaaaaa" * 3), [5, 18, 20], 1)
@given(secrets_and_streams(), cuts, st.integers(0, 12))
def test_a_new_stream_goes_on_where_a_killed_worker_had_come(
    known: tuple[list[str], bytes], ends: list[int], killed_after: int
) -> None:
    texts, data = known
    masker = a_masker(texts)
    first, before, consumed = MaskingStream(masker), b"", 0
    for piece in cut(data, ends)[:killed_after]:
        result = first.feed(piece)
        before, consumed = before + result.data, result.consumed

    begins_line = not before or before.endswith(b"\n")
    second = MaskingStream(masker, offset=consumed, begins_line=begins_line)
    after = masked(second, cut(data[consumed:], ends))

    assert before + after == reference(texts, data)
    assert second.flush().consumed == len(data)


# Texts


@given(
    st.lists(secret_texts, max_size=3), st.text(st.characters(exclude_categories=()), max_size=60)
)
@example([], "\ud800")
def test_a_text_without_secrets_stays_as_it_is(texts: list[str], text: str) -> None:
    encoded = text.encode(errors="surrogatepass")
    assume(not any(form in encoded for form in forms_of(texts)))
    assume("\n" not in text and "\r" not in text)

    assert a_masker(texts).mask_text(text) == text


def test_a_text_is_masked() -> None:
    masker = a_masker([TOKEN, "ungültig", "\udc80bytes"])

    assert masker.mask_text(f"é {TOKEN} 'ungültig' \udc80bytes \udcff") == "é *** '***' *** \udcff"
    assert masker.mask_text("\ud83d half a pair of " + TOKEN).endswith("half a pair of ***")


# What a script adds


def an_execution(*texts: str) -> tuple[ExecutionMasker, MaskingStream, MaskingStream]:
    execution = ExecutionMasker(a_masker(texts))
    return execution, MaskingStream(execution, add=execution.add), MaskingStream(execution)


@given(cuts)
def test_a_value_is_masked_from_the_line_that_adds_it_on(ends: list[int]) -> None:
    _, stdout, _ = an_execution(TOKEN)
    data = b"a fresh-value\n::add-mask::fresh-value\nfresh-value, tok-3f9Zq/81+xYw\n"

    found = masked(stdout, cut(data, ends))

    assert found == b"a fresh-value\n::add-mask::***\n***, ***\n"


@pytest.mark.parametrize(
    ("line", "shown", "added"),
    [
        (b"::add-mask::geheim\n", b"::add-mask::***\n", "geheim"),
        (b"::add-mask::geheim\r\n", b"::add-mask::***\r\n", "geheim"),
        (b"::add-mask::two words\n", b"::add-mask::***\n", "two words"),
        (b"::add-mask::::add-mask::\n", b"::add-mask::***\n", "::add-mask::"),
        (b"::add-mask::\xffbytes\n", b"::add-mask::***\n", "\udcffbytes"),
        (b"::add-mask::geheim", b"::add-mask::***", "geheim"),
        (b"::add-mask::short\n", b"::add-mask::***\n", None),
        (b"::add-mask::\n", b"::add-mask::\n", None),
        (b"::add-mask::", b"::add-mask::", None),
        (b"::add-mask:geheim\n", b"::add-mask:geheim\n", None),
        (b" ::add-mask::geheim\n", b" ::add-mask::geheim\n", None),
        (b"x\r::add-mask::geheim\n", b"x\r::add-mask::geheim\n", None),
    ],
)
def test_a_line_that_adds_a_mask(line: bytes, shown: bytes, added: str | None) -> None:
    for pieces in ([line], [bytes([byte]) for byte in line]):
        execution, stdout, _ = an_execution()

        assert masked(stdout, pieces) == shown
        assert execution.added == (() if added is None else (Secret(added),))


def test_a_mask_counts_in_both_streams_of_its_execution_only() -> None:
    job = a_masker([TOKEN])
    execution = ExecutionMasker(job)
    stdout, stderr = MaskingStream(execution, add=execution.add), MaskingStream(execution)
    other = MaskingStream(ExecutionMasker(job))
    stdout.feed(b"::add-mask::fresh-value-1\n")

    encoded = base64.b64encode(b"fresh-value-1")[:17]
    assert stderr.feed(b"fresh-value-1 " + encoded + b".\n").data == b"*** ***.\n"
    assert execution.mask_text("fresh-value-1 " + TOKEN) == "*** ***"
    assert other.feed(b"fresh-value-1\n").data == b"fresh-value-1\n"
    assert job.mask(b"fresh-value-1") == b"fresh-value-1"


def test_what_stderr_holds_back_is_masked_with_what_stdout_adds() -> None:
    _, stdout, stderr = an_execution("valued-customer")
    assert stderr.feed(b"the value").data == b"the "
    stdout.feed(b"::add-mask::value-added\n")

    assert stderr.feed(b"-added\n").data == b"***\n"


def test_only_stdout_adds_masks() -> None:
    execution, _, stderr = an_execution()

    assert stderr.feed(b"::add-mask::fresh-value\n").data == b"::add-mask::fresh-value\n"
    assert execution.added == ()


def test_a_line_that_adds_a_mask_is_held_back_up_to_its_bound() -> None:
    _, stdout, _ = an_execution()
    assert stdout.feed(b"a line\n::add").data == b"a line\n"
    assert stdout.feed(b"-mask::" + b"x" * 100).data == b""

    rest = b"x" * (MAX_ADD_MASK_BYTES - len(ADD_MASK) - 100)
    assert stdout.feed(rest[1:]).data == b""
    assert stdout.feed(b"x").data == ADD_MASK + b"x" * 100 + rest


def test_what_looks_like_such_a_line_within_another_is_not_held_back() -> None:
    _, stdout, _ = an_execution()
    stdout.feed(b"x")

    assert stdout.feed(b"::add-").data == b"::add-"


def test_such_a_line_is_one_also_where_a_secret_begins_like_it() -> None:
    execution, stdout, _ = an_execution("::add-mask::fresh", "\n::add-mask::fresh-value\nand more")

    assert stdout.feed(b"::add-mask::fresh-value\n").data == b"::add-mask::***\n"
    assert execution.added == (Secret("fresh-value"),)


def test_the_longest_line_that_adds_a_mask() -> None:
    value = b"x" * (MAX_ADD_MASK_BYTES - len(ADD_MASK) - 1)
    for count, known in ((0, 1), (1, 0)):
        execution, stdout, _ = an_execution()
        stdout.feed(ADD_MASK + value + b"x" * count + b"\n")
        assert len(execution.added) == known


def test_a_hundred_masks_are_added_and_no_more() -> None:
    execution, stdout, _ = an_execution()
    lines = b"".join(b"::add-mask::value-%03d\n" % number for number in range(MAX_ADDED + 2))

    shown = stdout.feed(lines * 2).data

    assert shown == b"::add-mask::***\n" * (2 * (MAX_ADDED + 2))
    assert execution.added == tuple(Secret(f"value-{n:03d}") for n in range(MAX_ADDED))
    assert execution.refused == 4
    assert stdout.feed(b"value-099 value-100\n").data == b"*** value-100\n"


added_lines = st.lists(
    st.sampled_from(
        [b"::add-mask::", b"first-value", b"first-", b"value", b"\n", b"\r\n", b"second", b"tok-3f"]
    ),
    max_size=20,
).map(b"".join)


@given(added_lines, cuts)
def test_masks_are_added_alike_however_the_stream_is_cut(data: bytes, ends: list[int]) -> None:
    whole, at_once, _ = an_execution(TOKEN)
    pieces, cut_up, _ = an_execution(TOKEN)

    assert masked(cut_up, cut(data, ends)) == masked(at_once, [data])
    assert pieces.added == whole.added


def lines_after(data: bytes) -> Iterator[bytes]:
    """The values of the lines that add one, and what stands behind each."""
    for match in re.finditer(rb"(?<![^\n])::add-mask::([^\n]*?)\r?(?=\n|\Z)", data):
        if len(match[1].strip()) >= 6:
            yield match[1].strip()


@given(added_lines, st.integers(0, 100))
@example(b"x\n::add-mask::first-value\r\nfirst-value\n::add-mask::second\nsecond", 27)
def test_a_new_stream_goes_on_with_the_masks_that_were_added(data: bytes, end: int) -> None:
    execution, stdout, _ = an_execution(TOKEN)
    first = stdout.feed(data[:end])

    again = ExecutionMasker(a_masker([TOKEN]), execution.added)
    begins_line = not first.data or first.data.endswith(b"\n")
    second = MaskingStream(again, add=again.add, offset=first.consumed, begins_line=begins_line)
    found = first.data + second.flush(data[first.consumed :]).data

    whole, uninterrupted, _ = an_execution(TOKEN)
    assert found == uninterrupted.flush(data).data
    assert again.added == whole.added


@given(added_lines)
def test_the_masks_that_were_added_are_told(data: bytes) -> None:
    execution, stdout, _ = an_execution()

    masked(stdout, [data])

    told = [secret.reveal().strip().encode() for secret in execution.added]
    assert told == list(dict.fromkeys(lines_after(data)))
