"""The token store: content, rebuilding, damage, concurrency, and that failure leaves nothing behind."""

import contextlib
import errno
import gzip
import json
import multiprocessing
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba.alphabet import BASES, TOKEN_BITS, decode, encode
from dnamamba.errors import InputError
from dnamamba.genome import store as store_module
from dnamamba.genome import store_format
from dnamamba.genome.store import TokenStore, open_genome

FASTA = b">chr1 first\nACGTNNNNac\n>chr2\nnnRYACGTACGTAC\n>none\n>chr3\nT\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_bytes(FASTA)
    return path


def change(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_content(fasta):
    store = open_genome(fasta)
    assert store.path == fasta.with_name("genome.fa.dnamamba")
    assert sorted(path.name for path in fasta.parent.iterdir()) == ["genome.fa", "genome.fa.dnamamba"]
    assert sorted(path.name for path in store.path.iterdir()) == ["index.json", "tokens.bin"]
    first, second, third = store.contigs
    assert first[:6] == ("chr1", 10, 0, 4, 2, 0)
    assert second[:6] == ("chr2", 14, 10, 4, 2, 2)
    assert third[:6] == ("chr3", 1, 24, 0, 0, 0)
    assert (first.description, store.empty_records) == ("first", ["none"])
    assert decode(store.read("chr1", 2, 10)) == "GTNNNNac"
    assert decode(store.read("chr2", 0, 6)) == "nnNNAC"
    assert store.read("chr3", 1, 1).shape == (0,)
    assert store.n_runs("chr1").tolist() == [[4, 8]]
    assert store.n_runs("chr2").tolist() == [[0, 4]]
    assert store.n_runs("chr3").shape == (0, 2)
    assert not store.tokens.flags.writeable
    assert store.source[0]["size"] == len(FASTA)
    store.verify()


@pytest.mark.parametrize(("contig", "start", "end"), [("chr1", -1, 3), ("chr1", 0, 11), ("chr1", 5, 4)])
def test_reading_outside_of_a_contig(fasta, contig, start, end):
    with pytest.raises(InputError, match="outside"):
        open_genome(fasta).read(contig, start, end)


def test_unknown_contigs_are_answered_by_what_there_is(fasta):
    with pytest.raises(InputError, match="no contig '1'; the contigs are chr1, chr2, chr3"):
        open_genome(fasta).contig("1")


@given(st.lists(st.text("ACGTNNNacgtn", min_size=1, max_size=60), min_size=1, max_size=6), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_runs_counts_and_checksums_over_all_boundaries(tmp_path_factory, contigs, block):
    folder = tmp_path_factory.mktemp("store")
    path = folder / "g.fa"
    path.write_text("".join(f">c{i}\n{sequence}\n" for i, sequence in enumerate(contigs)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "read_genome", lambda p, r: _in_blocks(p, r, block))
        patch.setattr(store_format, "BLOCK_BYTES", block)
        patch.setattr(store_module, "BLOCK_BYTES", block)
        store = open_genome(path)
        store.verify()
    for contig, sequence in zip(store.contigs, contigs, strict=True):
        tokens = encode(sequence)
        np.testing.assert_array_equal(store.read(contig.name, 0, contig.length), tokens)
        is_n = (tokens & TOKEN_BITS) >= BASES
        covered = np.zeros(len(tokens), bool)
        runs = store.n_runs(contig.name)
        for start, end in runs:
            covered[start:end] = True
        np.testing.assert_array_equal(covered, is_n)
        assert (runs[1:, 0] > runs[:-1, 1]).all()  # maximal: never touching
        assert contig.n_count == is_n.sum()
        assert contig.soft_masked == sum(letter.islower() for letter in sequence)
    positions = np.arange(store.bases + 1)
    expected = np.concatenate(([0], np.cumsum((store.tokens & TOKEN_BITS) >= BASES)))
    np.testing.assert_array_equal(store.n_before(positions), expected)


def _in_blocks(path, on_read, size):
    from dnamamba.genome.reader import SequenceBlock, read_genome

    for item in read_genome(path, on_read):
        if isinstance(item, SequenceBlock) and len(item.tokens):
            for start in range(0, len(item.tokens), size):
                yield item._replace(tokens=item.tokens[start : start + size])
        else:
            yield item


def test_fingerprint_is_of_the_content_alone(tmp_path, fasta):
    zipped = tmp_path / "genome.fa.gz"
    zipped.write_bytes(gzip.compress(FASTA.replace(b"\n", b"\r\n")))
    plain = open_genome(fasta)
    assert open_genome(zipped).fingerprint == plain.fingerprint
    for changed in (FASTA.replace(b"NNac", b"NNAc"), FASTA.replace(b"chr3", b"chr4"), FASTA + b"A"):
        fasta.write_bytes(changed)
        assert open_genome(fasta).fingerprint != plain.fingerprint


def test_reopened_without_reading_the_source(fasta, monkeypatch):
    first = open_genome(fasta)
    monkeypatch.setattr(store_module, "read_genome", None)
    monkeypatch.setattr(store_module, "HashingFile", None)
    assert open_genome([fasta]).fingerprint == first.fingerprint


def test_touched_source_is_hashed_not_rebuilt(fasta, monkeypatch):
    first = open_genome(fasta)
    change(fasta, FASTA)
    monkeypatch.setattr(store_module, "read_genome", None)
    assert open_genome(fasta).fingerprint == first.fingerprint
    monkeypatch.setattr(store_module, "HashingFile", None)  # the new time is remembered
    assert open_genome(fasta).fingerprint == first.fingerprint


def test_changed_source_is_rebuilt(fasta):
    old = open_genome(fasta)
    tokens = old.tokens
    change(fasta, FASTA.replace(b"ACGTNNNN", b"TTTTNNNN"))
    new = open_genome(fasta)
    assert decode(new.read("chr1", 0, 4)) == "TTTT"
    assert decode(tokens[:4]) == "ACGT"  # who has the old one open keeps it
    assert sorted(path.name for path in fasta.parent.iterdir()) == ["genome.fa", "genome.fa.dnamamba"]


def test_store_opens_without_its_source(fasta, tmp_path, capsys):
    fingerprint = open_genome(fasta).fingerprint
    fasta.unlink()
    store = fasta.with_name("genome.fa.dnamamba")
    assert open_genome(store).fingerprint == fingerprint
    assert open_genome(fasta).fingerprint == fingerprint
    assert capsys.readouterr().err == f"{fasta}: no such file; using its token store {store}\n"
    assert open_genome(fasta, store=store).fingerprint == fingerprint
    with pytest.raises(InputError, match="the token store of another genome"):
        open_genome(fasta.with_name("other.fa"), store=store)
    with pytest.raises(InputError, match=r"other\.fa: no such file; give a FASTA"):
        open_genome(fasta.with_name("other.fa"))
    with pytest.raises(InputError, match="stands alone"):
        open_genome([store, store])


def test_several_files_and_duplicates(tmp_path, fasta):
    other = tmp_path / "more.fa"
    other.write_text(">chrX\nACGT\n")
    both = open_genome([fasta, other])
    assert [contig.name for contig in both.contigs] == ["chr1", "chr2", "chr3", "chrX"]
    assert both.path != open_genome(fasta).path
    other.write_text(">chrX\nACGT\n>chr2\nAC\n")
    with pytest.raises(
        InputError, match=r"more\.fa, line 3: duplicate contig 'chr2' \(first in .*genome\.fa, line 3\)"
    ):
        open_genome([fasta, other])
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name or path.name.endswith(".lock")]


def test_explicit_folder(tmp_path, fasta):
    folder = tmp_path / "deep" / "store"
    assert open_genome(fasta, store=folder).path == folder
    assert not fasta.with_name("genome.fa.dnamamba").exists()
    change(fasta, FASTA + b"A")
    assert open_genome(fasta, store=folder).contig("chr3").length == 2
    other = tmp_path / "other.fa"
    other.write_text(">a\nACGT\n")
    with pytest.raises(InputError, match=r"another genome \(genome\.fa\)"):
        open_genome(other, store=folder)
    with pytest.raises(InputError, match="exists and is no token store"):
        open_genome(fasta, store=tmp_path)


def test_read_only_folder_uses_the_cache(tmp_path, fasta, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "reference"
    folder.mkdir()
    source = folder / "g.fa"
    source.write_bytes(FASTA)
    folder.chmod(0o555)
    try:
        store = open_genome(source)
        assert store.path.is_relative_to(tmp_path / "cache")
        assert list(folder.iterdir()) == [source]
        assert open_genome(source).path == store.path
    finally:
        folder.chmod(0o755)


def test_without_a_home_nothing_is_left_in_the_working_folder(tmp_path, fasta, monkeypatch):
    """As in containers whose user has no entry: `~` stays as it is."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(store_module, "_store_name", lambda files: Path("/proc/none"))
    assert open_genome(fasta).path.parent.parent == store_module._temporary_folder()
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    "data", [b">a\nMKLV\n", b"", b">a\nACGT\n>a\nAC\n", b">a\n>b\n", gzip.compress(FASTA, mtime=0)[:-9]]
)
def test_bad_input_leaves_nothing(tmp_path, data):
    path = tmp_path / "bad.fa"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.fa"):
        open_genome(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError, "disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), InputError, "cannot be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_failing_writes_leave_the_old_store(fasta, monkeypatch, error, raised, message):
    old = open_genome(fasta).fingerprint
    kept = {path.name: path.read_bytes() for path in fasta.with_name("genome.fa.dnamamba").iterdir()}
    change(fasta, FASTA + b"ACGT")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_format.TokenWriter, "append", fail)
        with pytest.raises(raised, match=message):
            open_genome(fasta)
    assert sorted(path.name for path in fasta.parent.iterdir()) == ["genome.fa", "genome.fa.dnamamba"]
    assert {path.name: path.read_bytes() for path in fasta.with_name("genome.fa.dnamamba").iterdir()} == kept
    assert open_genome(fasta).fingerprint != old


def test_left_overs_of_a_killed_builder_are_removed(fasta):
    (fasta.parent / "genome.fa.dnamamba.tmp-dead").mkdir()
    open_genome(fasta)
    assert sorted(path.name for path in fasta.parent.iterdir()) == ["genome.fa", "genome.fa.dnamamba"]


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "short":
        del data[-1]
    elif how == "long":
        data += b"\0"
    elif how == "magic":
        data[0] ^= 1
    elif how == "half":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "how"),
    [("tokens.bin", h) for h in ("short", "long", "magic", "half", "empty")]
    + [("index.json", h) for h in ("magic", "half", "empty")],
)
def test_damage_seen_at_opening(fasta, name, how):
    folder = open_genome(fasta).path
    damage(folder / name, how)
    for genome in (fasta, folder):
        with pytest.raises(InputError, match=r"damaged.*delete the store to have it rebuilt"):
            open_genome(genome)


def test_damage_seen_by_verify(fasta):
    store = open_genome(fasta)
    with (store.path / "tokens.bin").open("r+b") as file:
        file.seek(store_format.HEADER_BYTES + 12)
        file.write(b"\x03")
    assert open_genome(fasta).bases == store.bases
    with pytest.raises(InputError, match=r"block 0 is damaged"):
        open_genome(fasta, verify=True)


def test_parts_of_two_stores_are_refused(fasta, tmp_path):
    other = tmp_path / "other.fa"
    other.write_bytes(FASTA.replace(b"chr3\nT", b"chr3\nG"))
    first, second = open_genome(fasta).path, open_genome(other).path
    (second / "tokens.bin").replace(first / "tokens.bin")
    with pytest.raises(InputError, match="damaged"):
        open_genome(fasta)


def test_other_format_versions(fasta):
    folder = open_genome(fasta).path
    index = store_format.read_raw_index(folder)
    store_format.write_index(folder, {**index, "version": 0})
    with pytest.raises(InputError, match="format 0"):
        open_genome(folder)
    assert open_genome(fasta).bases == index["bases"]  # the source is there: built again


def as_format_1(folder: Path) -> dict:
    """Makes a store one of format 1, whose index has no checksum; gives its index."""
    index = {key: value for key, value in store_format.read_raw_index(folder).items() if key != "checksum"}
    (folder / "index.json").write_text(json.dumps({**index, "version": 1}))
    return index


def test_format_1_is_read_and_not_built_again(fasta, monkeypatch):
    first = open_genome(fasta)
    as_format_1(first.path)
    monkeypatch.setattr(store_module, "read_genome", None)
    again = open_genome(fasta, verify=True)
    assert (again.fingerprint, again.contigs) == (first.fingerprint, first.contigs)
    os.utime(fasta, ns=(7, 7))
    open_genome(fasta)
    index = store_format.read_index(first.path)
    assert (index["version"], index["source"][0]["mtime_ns"]) == (1, 7)  # the time is remembered


def test_any_damaged_byte_of_an_index_is_seen(fasta):
    folder = open_genome(fasta).path
    whole = (folder / "index.json").read_bytes()
    random = np.random.default_rng(5)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] = random.choice([byte for byte in b'0123456789abcdef"{}[],: \xff' if byte != data[at]])
        (folder / "index.json").write_bytes(data)
        with pytest.raises(InputError, match=r"index\.json: (damaged|not the index)"):
            TokenStore(folder)


RUBBISH = [None, True, -1, 0, 1, 7, 1 << 70, 0.5, "", "abc", "a" * 64, [], [1], [[0, 1]], ["x"], {}, {"a": 1}]


@pytest.mark.parametrize("version", [1, 2])
def test_other_shapes_of_an_index_are_refused(fasta, version):
    """With a checksum that fits, as of a stranger's store: every value is replaced by ones of other types and sizes."""
    folder = open_genome(fasta).path
    index = as_format_1(folder)

    def paths_in(value, path=()):
        yield path
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            yield from paths_in(inner, (*path, key))

    free = {("source", 0, key) for key in ("path", "size", "mtime_ns", "sha256")}  # any of the right type will do
    free |= {("contigs", key, number) for key in ("description", "soft_masked", "ambiguous") for number in range(3)}
    tried = 0
    for path in paths_in(index):
        for rubbish in RUBBISH:
            changed = {"": json.loads(json.dumps({**index, "version": version}))}
            into = changed
            for key in ("", *path)[:-1]:
                into = into[key]
            if into[("", *path)[-1]] == rubbish or (path == ("version",) and rubbish in (1, 2)):
                continue
            into[("", *path)[-1]] = rubbish
            if isinstance(changed[""], dict):
                store_format.write_index(folder, changed[""])
            else:
                (folder / "index.json").write_text(json.dumps(changed[""]))
            if path in free or path[:1] == ("empty_records",):
                with contextlib.suppress(InputError):
                    TokenStore(folder)
            else:
                with pytest.raises(InputError, match=re.escape(str(folder))):
                    TokenStore(folder)
            tried += 1
    assert tried > 500
    (folder / "index.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid JSON"):
        TokenStore(folder)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("digest", lambda found: ["0" * 32, *found[1:]]),
        ("soft_masked", lambda found: [found[0] + 1, *found[1:]]),
    ],
)
def test_verify_counts_everything_again(fasta, field, change):
    """An index that fits in itself, over tokens that are whole, and still says what is not so."""
    folder = open_genome(fasta).path
    index = as_format_1(folder)
    index["contigs"][field] = change(index["contigs"][field])
    contigs = [store_format.Contig._make(row) for row in zip(*index["contigs"].values(), strict=True)]
    index["fingerprint"] = store_format.fingerprint_of(contigs, index["block_crc32"]).hexdigest()
    store_format.write_index(folder, index)
    with (folder / "tokens.bin").open("r+b") as file:
        file.seek(24)
        file.write(bytes.fromhex(index["fingerprint"]))
    store = TokenStore(folder)
    with pytest.raises(InputError, match=r"index\.json: damaged \(what it says of contig chr1 is not"):
        store.verify()


def test_runs_of_n_over_many_blocks_are_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(store_format, "BLOCK_BYTES", 7)
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 7)
    fasta = tmp_path / "n.fa"
    fasta.write_text(">a\n" + "ACGTNNNNNNNNNNNNNNNNacgtn" + "\n>b\nNNNNNNNNN\n>c\nNACGT\n")
    store = open_genome(fasta, verify=True)
    assert store.all_n_runs.tolist() == [[4, 20], [24, 25], [25, 34], [34, 35]]


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(InputError, match="no token store"):
        open_genome(tmp_path)


def _read_in_child(store: TokenStore, queue) -> None:
    queue.put((decode(store.read("chr2", 4, 8)), store._process == os.getpid()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_each_process_opens_its_own_map(fasta, method):
    store = open_genome(fasta)
    assert store.tokens.shape == (25,)
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    child.join()
    assert queue.get() == ("ACGT", True)


def test_pickle_carries_no_tokens(fasta):
    store = open_genome(fasta)
    _ = store.tokens
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).fingerprint == store.fingerprint


def _build_in_child(fasta: Path, log: Path) -> None:
    build = store_module._build_locked

    def slow(*arguments):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return build(*arguments)

    store_module._build_locked = slow
    open_genome(fasta).verify()


def test_concurrent_builders_build_once(fasta, tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    children = [context.Process(target=_build_in_child, args=(fasta, log)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 3
    assert log.read_text() == "built\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genome.fa", "genome.fa.dnamamba", "log"]


def test_progress_reaches_the_end(fasta):
    calls: list[tuple[int, int]] = []
    open_genome(fasta, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(FASTA), len(FASTA))


def test_genome_modules_import_little():
    import subprocess
    import sys

    modules = ["reader", "store", "contigs", "intervals", "splits", "windows"]
    code = f"import sys; {'; '.join(f'import dnamamba.genome.{m}' for m in modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "lightning", "Bio", "pyfaidx", "filelock", "platformdirs", "polars"} & set(loaded)
