"""The same samples in every form a recipe can name them in; real files, made here."""

from __future__ import annotations

import csv
import io
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trtrecipe.data import batches, records
from trtrecipe.data.errors import DataError
from trtrecipe.data.patterns import matching
from trtrecipe.data.sampling import Sampling, select
from trtrecipe.data.sources import (
    ALL_INPUTS,
    ArrayData,
    ColumnData,
    Data,
    FileData,
    LabelData,
    RecordData,
    digest_samples,
    from_json,
    in_words,
    to_json,
    used_files,
    write_samples,
)
from trtrecipe.digest import sha256_file
from trtrecipe.errors import InputError, Problem, StepError
from trtrecipe.graphs.interface import Interface, TensorSpec
from trtrecipe.plan.sources import SampleSource, digest_sources
from trtrecipe.store.stat import StatCache

ALL = Sampling(None, 0)
SOME = Sampling(4, 3)
COUNT = 9
FLOATS = TensorSpec("image", "float32", ("batch", 2, 3))
PIXELS = TensorSpec("image", "float32", ("batch", 5, 7, 3))
VALUES = np.random.default_rng(1).normal(size=(COUNT, 2, 3)).astype(np.float32)
COLOURS = np.random.default_rng(2).integers(0, 256, (COUNT, 5, 7, 3), np.uint8)
LABELS = [index * 3 % 4 for index in range(COUNT)]

Sources = Mapping[str, Data]


def bring(folder: Path, sources: Sources, sampling: Sampling = ALL) -> dict[str, Path]:
    """The sources as a step's inputs."""
    inputs = {}
    for number, (role, data) in enumerate(sources.items()):
        out = folder / f"in{number}-{os.urandom(3).hex()}"
        digest = write_samples(from_json(to_json(data)), sampling, out)
        assert digest == sha256_file(out) == digest_samples(data, sampling)
        inputs[role] = out
    return inputs


def feeds(
    folder: Path, sources: Sources, spec: TensorSpec, operations: Sequence[Any] = (), sampling: Sampling = ALL
) -> tuple[np.ndarray, list[int]]:
    """What the model is fed, and the labels."""
    graph, preprocess = Interface((spec,), ()), {spec.name: operations}
    samples = batches.load(bring(folder, sources, sampling), graph, preprocess)
    fed = [batch.feeds[spec.name][: batch.count] for batch in batches.batches(samples, graph, preprocess, 2)]
    assert samples.label is not None
    return np.concatenate(fed), samples.label.tolist()


def _write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **options)
    return out.getvalue()


def as_npz(folder: Path, values: np.ndarray) -> Sources:
    np.savez(folder / "d.npz", x=values, y=LABELS)
    return {"data.image": ArrayData(folder / "d.npz", "x"), "data.label": ArrayData(folder / "d.npz", "y")}


def as_npy(folder: Path, values: np.ndarray) -> Sources:
    np.save(folder / "x.npy", values)
    np.save(folder / "y.npy", LABELS)
    return {"data.image": ArrayData(folder / "x.npy", None), "data.label": ArrayData(folder / "y.npy", None)}


def _labels_file(folder: Path, names: list[str]) -> Path:
    return _write(folder / "labels.txt", "".join(f"{n} {label}\n" for n, label in zip(names, LABELS, strict=True)))


def as_raw(folder: Path, values: np.ndarray) -> Sources:
    names = [f"{index}.bin" for index in range(COUNT)]
    for name, value in zip(names, values, strict=True):
        _write(folder / "raw" / name, value.tobytes())
    labels = LabelData(folder, "raw/*.bin", _labels_file(folder, names))
    return {"data.image": FileData(folder, "raw/*.bin", "raw"), "data.label": labels}


def _as_csv(folder: Path, suffix: str, files: list[bytes]) -> Sources:
    with (folder / "list.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["class", "file", "note"])
        for index, data in enumerate(files):
            _write(folder / "files" / f"a, {index}{suffix}", data)
            writer.writerow([LABELS[index], f"files/a, {index}{suffix}", ""])
    list_ = folder / "list.csv"
    # The note is empty in every line, which only matters to who asks for it.
    return {"data.image": ColumnData(list_, "file", False), "data.label": ColumnData(list_, "class", True)}


def as_csv_of_npy(folder: Path, values: np.ndarray) -> Sources:
    return _as_csv(folder, ".npy", [_npy(value) for value in values])


def as_csv_of_raw(folder: Path, values: np.ndarray) -> Sources:
    return _as_csv(folder, ".dat", [value.tobytes() for value in values])


def _as_records(folder: Path, make: Callable[[int], Any], shards: int = 2) -> Sources:
    import tensorflow as tf

    place = 0
    for shard, indices in enumerate(np.array_split(np.arange(COUNT), shards)):
        with tf.io.TFRecordWriter(str(folder / f"part-{shard}.tfrecord")) as writer:
            for index in indices:
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[LABELS[index]]))
                features = tf.train.Features(feature={"pixels": make(int(index)), "class": label})
                writer.write(tf.train.Example(features=features).SerializeToString())
                place += 1
    return {ALL_INPUTS: RecordData(folder, "part-*.tfrecord", (("image", "pixels"), ("label", "class")))}


def as_records_of_floats(folder: Path, values: np.ndarray) -> Sources:
    import tensorflow as tf

    return _as_records(
        folder, lambda i: tf.train.Feature(float_list=tf.train.FloatList(value=values[i].ravel().tolist()))
    )


def as_records_of_bytes(folder: Path, values: np.ndarray) -> Sources:
    import tensorflow as tf

    return _as_records(folder, lambda i: tf.train.Feature(bytes_list=tf.train.BytesList(value=[values[i].tobytes()])))


@pytest.mark.parametrize("sampling", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize(
    "form", [as_npz, as_npy, as_raw, as_csv_of_npy, as_csv_of_raw, as_records_of_floats, as_records_of_bytes]
)
def test_equal_values_in_every_form_are_equal_feeds(form: Any, sampling: Sampling, tmp_path: Path) -> None:
    fed, labels = feeds(tmp_path, form(tmp_path, VALUES), FLOATS, [{"scale": 2.0}], sampling)
    chosen = list(select(COUNT, sampling))
    np.testing.assert_array_equal(fed, VALUES[chosen] * np.float32(2))
    assert labels == [LABELS[index] for index in chosen]


def as_images(folder: Path, form: str = "PNG") -> Sources:
    names = [f"{index // 4}/{index}.{form.lower()}" for index in range(COUNT)]
    for name, colours in zip(names, COLOURS, strict=True):
        _write(folder / "images" / name, encoded(colours, form, **({"lossless": True} if form == "WEBP" else {})))
    labels = LabelData(folder, "images/**/*", _labels_file(folder, names))
    return {ALL_INPUTS: FileData(folder, "images/**/*", "images"), "data.label": labels}


def as_records_of_images(folder: Path, form: str) -> Sources:
    import tensorflow as tf

    return _as_records(
        folder, lambda i: tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(COLOURS[i], form)]))
    )


@pytest.mark.parametrize(
    "form",
    [
        *(lambda folder, kind=kind: as_images(folder, kind) for kind in ("PNG", "BMP", "PPM", "WEBP")),
        lambda folder: _as_csv(folder, ".png", [encoded(colours) for colours in COLOURS]),
        lambda folder: as_records_of_images(folder, "PNG"),
        lambda folder: as_npz(folder, COLOURS),
    ],
    ids=["png", "bmp", "ppm", "webp", "csv", "tfrecord", "npz"],
)
def test_equal_pixels_in_every_form_are_equal_feeds(form: Any, tmp_path: Path) -> None:
    operations = [{"resize": {"size": [4, 4], "filter": "bicubic"}}, {"colour": "bgr"}, {"layout": "nchw"}]
    operations += [{"normalize": {"mean": [120.0, 110.0, 100.0], "std": [60.0, 61.0, 62.0]}}]
    spec = TensorSpec("image", "float32", ("batch", 3, 4, 4))
    fed, labels = feeds(tmp_path, form(tmp_path), spec, operations, SOME)
    chosen = list(select(COUNT, SOME))
    resized = [np.asarray(Image.fromarray(COLOURS[i]).resize((4, 4), Image.Resampling.BICUBIC)) for i in chosen]
    expected = np.stack(resized)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    expected = (expected - np.float32([[[120]], [[110]], [[100]]])) / np.float32([[[60]], [[61]], [[62]]])
    np.testing.assert_array_equal(fed, expected)
    assert labels == [LABELS[index] for index in chosen]


def test_jpeg_is_what_pillow_and_tensorflow_make_of_it(tmp_path: Path) -> None:
    as_images(tmp_path, "JPEG")
    sources = {ALL_INPUTS: FileData(tmp_path, "images/*/*.jpeg", "images")}
    sources["data.label"] = LabelData(tmp_path, "images/*/*.jpeg", tmp_path / "labels.txt")
    fed, _ = feeds(tmp_path, sources, PIXELS)
    files = sorted((tmp_path / "images").rglob("*.jpeg"))
    np.testing.assert_array_equal(fed, [np.asarray(Image.open(file)) for file in files])


# Keys: the digest of a stream changes with the samples used, and with nothing else.


def test_only_used_files_count(tmp_path: Path) -> None:
    sources = as_images(tmp_path)
    data, labels = sources[ALL_INPUTS], sources["data.label"]
    before = digest_samples(data, SOME), digest_samples(labels, SOME)
    names = [tmp_path / "images" / name for name in matching(tmp_path, "images/**/*")[1]]
    chosen = list(select(COUNT, SOME))
    unused = next(index for index in range(COUNT) if index not in chosen)
    names[unused].write_bytes(encoded(255 - COLOURS[unused]))
    names[chosen[1]].touch()
    assert (digest_samples(data, SOME), digest_samples(labels, SOME)) == before
    names[chosen[1]].write_bytes(encoded(255 - COLOURS[0]))
    assert digest_samples(data, SOME) != before[0]
    assert digest_samples(labels, SOME) == before[1]


def test_a_name_is_in_no_key(tmp_path: Path) -> None:
    data = as_images(tmp_path)[ALL_INPUTS]
    before = digest_samples(data, SOME)
    (tmp_path / "images" / "0" / "0.png").rename(tmp_path / "images" / "0" / "00.png")
    assert digest_samples(data, SOME) == before
    (tmp_path / "images" / "0" / "00.png").rename(tmp_path / "images" / "z.png")  # the last now
    assert digest_samples(data, SOME) != before


def test_only_used_records_count(tmp_path: Path) -> None:
    data = as_records_of_bytes(tmp_path, VALUES)[ALL_INPUTS]
    before = digest_samples(data, SOME)
    chosen = list(select(COUNT, SOME))
    changed = VALUES.copy()
    changed[[index for index in range(COUNT) if index not in chosen]] += 1
    as_records_of_bytes(tmp_path, changed)
    assert digest_samples(data, SOME) == before
    changed[chosen[0]] += 1
    as_records_of_bytes(tmp_path, changed)
    assert digest_samples(data, SOME) != before


def test_how_records_are_spread_over_files_does_not_count(tmp_path: Path) -> None:
    digests = set()
    for shards in (1, 3):
        (tmp_path / str(shards)).mkdir()
        import tensorflow as tf

        def make(i: int) -> Any:
            return tf.train.Feature(float_list=tf.train.FloatList(value=VALUES[i].ravel().tolist()))

        digests.add(digest_samples(_as_records(tmp_path / str(shards), make, shards)[ALL_INPUTS], SOME))
    assert len(digests) == 1


def test_the_feature_that_is_read_counts(tmp_path: Path) -> None:
    as_records_of_bytes(tmp_path, VALUES)
    other = (("image", "other"),), (("image", "pixels"),), (("picture", "pixels"),)
    assert len({digest_samples(RecordData(tmp_path, "part-*", features), SOME) for features in other}) == 3


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)


@relaxed
@given(st.integers(0, 2**30), st.data())
def test_sampling_over_files_is_sampling_over_their_sorted_names(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("files")
    names = data.draw(
        st.lists(st.text("ab/é-Z0", min_size=1, max_size=6).map(lambda s: s.strip("/") + "f.bin"), unique=True)
    )
    for name in names:
        path = folder / "top" / name
        if not any((folder / "top" / part).is_file() for part in Path(name).parents) and not path.is_dir():
            _write(path, name.encode())
    files = sorted(p.relative_to(folder / "top").as_posix().encode() for p in folder.rglob("*") if p.is_file())
    wanted = Sampling(data.draw(st.integers(1, len(files))) if files else 1, seed)
    source = FileData(folder, "top/**/*.bin", "raw")
    if not files:
        with pytest.raises(DataError):
            digest_samples(source, wanted)
        return
    write_samples(source, wanted, folder / "out")
    chosen = [files[index] for index in select(len(files), wanted)]
    content = b"".join((folder / "top" / os.fsdecode(name)).read_bytes() for name in chosen)
    assert (folder / "out").read_bytes().endswith(content)
    assert used_files(source, wanted)[1] == [str(folder / "top" / os.fsdecode(name)) for name in chosen]


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["B.png", "a.png", "link.png"]),
        ("**/*.png", ["B.png", "a.png", "deep/c.png", "deep/er/d.png", "link.png"]),
        ("deep/**", ["c.png", "er/d.png"]),
        ("**", ["B.png", "a.png", "deep/c.png", "deep/er/d.png", "link.png"]),
        ("deep/*", ["c.png"]),
        ("[ab].png", ["a.png"]),
        ("[!B]*.png", ["a.png", "link.png"]),
        ("?.png", ["B.png", "a.png"]),
        (".*/*", [".hidden/h.png"]),
        ("**/**/er/*.png", ["deep/er/d.png"]),
        ("linked/*.png", ["c.png"]),
        ("l*ed/*", ["linked/c.png"]),
        ("deep/c.png", ["c.png"]),
        ("deep/../a.png", ["a.png"]),
    ],
)
def test_patterns(pattern: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("a.png", "B.png", "deep/c.png", "deep/er/d.png", ".hidden/h.png", ".ds.png", "deep/.x"):
        _write(tmp_path / "top" / name, b"x")
    (tmp_path / "top" / "link.png").symlink_to("a.png")
    (tmp_path / "top" / "linked").symlink_to("deep")
    (tmp_path / "top" / "deep" / "circle").symlink_to("..")
    top, names = matching(tmp_path / "top", pattern)
    assert names == expected
    assert all((top / name).is_file() for name in names)
    assert matching(tmp_path, f"{tmp_path}/top/{pattern}") == (top, names)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def _broken_link(folder: Path) -> None:
    (folder / "lost.png").symlink_to("nowhere")


def _no_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.png")).touch()


def _empty(folder: Path) -> None:
    _write(folder / "a.png", b"")


def _pointer(folder: Path) -> None:
    _write(folder / "a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _nothing(folder: Path) -> None:
    _write(folder / "a.PNG", b"")


@pytest.mark.parametrize(
    ("make", "pattern", "message", "hint"),
    [
        (_pipe, "*.png", "pipe.png is no plain file", "put a copy"),
        (_broken_link, "*.png", "lost.png is no plain file", "put a copy"),
        (_no_utf8, "*.png", "which is no UTF-8 name", "rename it"),
        (_empty, "*.png", "a.png is empty", "remove it"),
        (_pointer, "*.png", "a.png is a Git LFS pointer", "git lfs pull"),
        (_nothing, "*.png", "no file matches *.png", "holds a.PNG"),
        (_nothing, "x/*.png", "there is no folder", "check the path"),
        (_nothing, "**/*.png", "no file matches **/*.png", "check the pattern"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_files_that_cannot_be_used(make: Any, pattern: str, message: str, hint: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        digest_samples(FileData(tmp_path, pattern, "images"), ALL)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_more_files_than_there_are(tmp_path: Path) -> None:
    data = as_raw(tmp_path, VALUES)["data.image"]
    source = SampleSource(data, Sampling(99, 0), Problem("", "r.yaml", 1, 1), Problem("", "r.yaml", 2, 2))
    with pytest.raises(InputError, match=r"r.yaml:2:2: raw/\*.bin: 99 samples are asked for and 9 exist"):
        digest_sources([source], StatCache(tmp_path / "stat.sqlite"))


def test_data_in_words(tmp_path: Path) -> None:
    words = [in_words(data) for data in (*as_raw(tmp_path, VALUES).values(), *as_npz(tmp_path, VALUES).values())]
    assert words == ["raw/*.bin", "labels.txt", "x", "y"]
    assert in_words(ColumnData(tmp_path / "l.csv", "file", False)) == "file in l.csv"


# Rows of the stat cache: a no-op reads no file, and sees every change.


def test_unchanged_files_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = StatCache(tmp_path / "stat.sqlite")
    sources = [
        SampleSource(data, SOME, Problem(""), Problem(""))
        for data in (*as_images(tmp_path).values(), *_as_csv(tmp_path, ".dat", [v.tobytes() for v in VALUES]).values())
    ]
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("trtrecipe.store.stat.SETTLED_NS", 0)
    before = digest_sources(sources, stat)
    with monkeypatch.context() as patch:
        patch.setattr("trtrecipe.plan.sources.digest_samples", lambda *_: pytest.fail("hashed again"))
        assert digest_sources(sources, stat) == before
    (tmp_path / "images" / "0" / "0.png").rename(tmp_path / "images" / "y.png")  # no stat changes, but the list does
    assert digest_sources(sources[:1], stat)[sources[0]] != before[sources[0]]


# Labels.


def labels_of(folder: Path, text: str, names: tuple[str, ...] = ("a/1.bin", "a/2.bin", "b/1.bin")) -> list[float]:
    for name in names:
        _write(folder / "d" / name, b"1234")
    out = folder / f"out{os.urandom(3).hex()}"
    write_samples(LabelData(folder, "d/**/*.bin", _write(folder / "l.txt", text)), ALL, out)
    found: list[float] = np.load(out).tolist()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3\n1\n2\n", [3, 1, 2]),
        ("\ufeff# class\n3\n\n1\n2", [3, 1, 2]),
        ("b/1.bin 7\r\n2.bin 8\r\n./a/1.bin\t9\r\n", [9, 8, 7]),
        ("b/1.bin,7\n2.bin, 8.5\na/1.bin ,9\n", [9, 8.5, 7]),
        ('"b/1.bin",7\n"2.bin",-8\na/1.bin,9\n', [9, -8, 7]),
    ],
)
def test_labels(text: str, expected: list[float], tmp_path: Path) -> None:
    found = labels_of(tmp_path, text)
    assert found == expected
    assert [type(value) for value in found] == [type(max(expected, key=lambda v: isinstance(v, float)))] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "l.txt has 2 labels, and 3 files match"),
        ("1\n2\nx\n", "l.txt:3: the label is 'x', not a number"),
        ("1\n2\nnan\n", "l.txt:3: the label is nan"),
        ("1\n2\n99999999999999999999\n", "l.txt:3: the label is 99999999999999999999"),
        ("1\n2\n9999999999999999999\n", "more than 64 bits hold"),
        ("a/1.bin 1\n2.bin 2\n1.bin 3\n", "l.txt:3: 1.bin may be a/1.bin or b/1.bin"),
        ("a/1.bin 1\n2.bin 2\n", "l.txt has no label for b/1.bin"),
        ("a/1.bin 1\n", "l.txt has no label for a/2.bin, and 1 more"),
        ("a/1.bin 1\n2.bin 2\nb/1.bin 3\na/2.bin 2\n", "l.txt:4: a/2.bin has its label in line 2 already"),
        ("a/1.bin 1\na/3.bin 2\n", "l.txt:2: no file is called a/3.bin"),
        ("a/1.bin 1\n5\n", "l.txt:2: '5' names no file"),
        ("a/1.bin one\n", "l.txt:1: the label of a/1.bin is 'one', not a number"),
        ("version https://git-lfs.github.com/spec/v1\n", "l.txt is a Git LFS pointer"),
        ("a\0b", "l.txt is no text"),
        ("", "l.txt has 0 labels"),
    ],
)
def test_labels_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        labels_of(tmp_path, text)
    assert message in caught.value.message
    assert caught.value.hint


def test_labels_in_another_encoding(tmp_path: Path) -> None:
    _write(tmp_path / "d" / "a.bin", b"1")
    _write(tmp_path / "l.txt", "a.bin 1\né.bin 2\n".encode("latin1"))
    with pytest.raises(DataError, match=r"l.txt:2: this is no UTF-8 text"):
        digest_samples(LabelData(tmp_path, "d/*", tmp_path / "l.txt"), ALL)


# CSV lists.


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("file,class\na.bin,1\n", "flie", "l.csv has no column flie; it has file, class"),
        ("", "file", "l.csv has no column file; it has none"),
        ("file,class\n", "file", "no line below its header"),
        ("file,file\na.bin,b.bin\n", "file", "two columns file"),
        ("file,class\na.bin,1\nb.bin\n", "file", "l.csv:3: 1 entries, and the header has 2"),
        ("file,class\n,1\n", "file", "l.csv:2: the column file is empty"),
        ("file,class\na.bin,1\nmissing.bin,1\n", "file", "l.csv:3: missing.bin does not exist"),
        ("file,class\n.,1\n", "file", "l.csv:2: . is no plain file"),
        ('file,class\n"a.bin,1\n', "file", "unexpected end of data"),
        ("file,class\na.bin,cat\n", "class", "l.csv:2: the column class is 'cat', not a number"),
    ],
)
def test_lists_that_do_not_fit(text: str, column: str, message: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.bin", b"1")
    with pytest.raises(DataError) as caught:
        digest_samples(ColumnData(_write(tmp_path / "l.csv", text), column, column == "class"), ALL)
    assert message in caught.value.message
    assert caught.value.hint


# TFRecords.


def test_framing_is_tensorflows(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        for data in (b"", b"one", b"x" * 1000):
            writer.write(data)
    assert (tmp_path / "a").read_bytes() == b"".join(records.framed(data) for data in (b"", b"one", b"x" * 1000))
    shard = records.scan("a", tmp_path / "a")
    assert list(shard.ends) == [16, 35, 1051]
    assert b"".join(records.copy(shard, 1)) == records.framed(b"one")


def _damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (records.framed(b"one")[:-1], "a.tfrecord is cut short: its record 0, at byte 0"),
        (records.framed(b"one") + b"12345", "cut short: its record 1, at byte 19"),
        (_damaged(records.framed(b"one") * 2, 19), "damaged at byte 19"),
        (_damaged(records.framed(b"one"), 3), "is no TFRecord file"),
        (b"\x1f\x8b\x08" + bytes(30), "compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (struct.pack("<Q", 1 << 60) + records.framed(b"x" * (1 << 20))[8:12], "is no TFRecord file"),
        (b"", "hold no record"),
    ],
)
def test_bad_framing(data: bytes, message: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.tfrecord", data)
    source = SampleSource(
        RecordData(tmp_path, "*.tfrecord", (("image", "x"),)), ALL, Problem("", "r.yaml", 4, 9), Problem("")
    )
    with pytest.raises(InputError) as caught:
        digest_sources([source], StatCache(tmp_path / "stat.sqlite"))
    [problem] = caught.value.problems
    assert message in problem.message
    assert (problem.line, problem.column) == (4, 9)
    assert problem.hint


def _record(**features: Any) -> bytes:
    import tensorflow as tf

    made = {}
    for name, value in features.items():
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        elif isinstance(value, list) and value and isinstance(value[0], int):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        elif isinstance(value, list):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=value))
        else:
            made[name] = tf.train.Feature()
    data: bytes = tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()
    return data


@pytest.mark.parametrize(
    ("second", "features", "message"),
    [
        ({"y": [1]}, {"image": "x"}, "record 1 of a.tfrecord has no feature x; it has y"),
        ({"x": [1.0] * 5}, {"image": "x"}, "feature x of record 1 of a.tfrecord holds 5 values"),
        ({"x": [b"a", b"b"]}, {"image": "x"}, "holds 2 byte strings"),
        ({"x": None}, {"image": "x"}, "feature x of record 1 of a.tfrecord is empty"),
        ({"x": [b"12345"]}, {"image": "x"}, "feature x of record 1 of a.tfrecord has 5 bytes"),
        ({"x": [1.0] * 6}, {"image": "x", "picture": "x"}, "data.features names input picture"),
        ({"x": [1.0] * 6, "y": [b"cat"]}, {"image": "x", "label": "y"}, "feature y of record 1 of a.tfrecord is bytes"),
        ({"x": [1.0] * 6, "y": [1, 2]}, {"image": "x", "label": "y"}, "feature y has 2 values in record 1"),
    ],
)
def test_records_that_do_not_fit(second: Any, features: dict[str, str], message: str, tmp_path: Path) -> None:
    data = records.framed(_record(x=[1.0] * 6, y=[0])) + records.framed(_record(**second))
    _write(tmp_path / "a.tfrecord", data)
    source = RecordData(tmp_path, "a.tfrecord", tuple(features.items()))
    with pytest.raises(StepError) as caught:
        batches.load(bring(tmp_path, {ALL_INPUTS: source}), Interface((FLOATS,), ()), {})
    assert message in caught.value.message
    assert caught.value.hint


def test_damaged_records_are_found_by_the_reader(tmp_path: Path) -> None:
    good, bad = records.framed(_record(x=[1.0] * 6)), records.framed(_record(x=[2.0] * 6))
    _write(tmp_path / "a.tfrecord", good + _damaged(bad, 20) + good)
    source = RecordData(tmp_path, "a.tfrecord", (("image", "x"),))
    with pytest.raises(StepError, match=r"record 1 of a\.tfrecord cannot be read"):
        batches.load(bring(tmp_path, {ALL_INPUTS: source}), Interface((FLOATS,), ()), {})
    _write(tmp_path / "a.tfrecord", records.framed(b"\xff" * 40))
    with pytest.raises(StepError, match=r"record 0 of a\.tfrecord cannot be read as a tf\.train\.Example"):
        batches.load(bring(tmp_path, {ALL_INPUTS: source}), Interface((FLOATS,), ()), {})


# Files against the model.


def _load(folder: Path, data: Data, *specs: TensorSpec, operations: Sequence[Any] = ()) -> list[Any]:
    graph = Interface(specs, ())
    preprocess = {spec.name: operations for spec in specs}
    role = ALL_INPUTS if isinstance(data, FileData) and data.form == "images" else f"data.{specs[0].name}"
    samples = batches.load(bring(folder, {role: data}), graph, preprocess)
    return [batch.feeds[specs[0].name] for batch in batches.batches(samples, graph, preprocess, 2)]


GRAY = np.full((5, 7), 9, np.uint8)


def _sixteen_bits(path: Path) -> bytes:
    return encoded(np.full((5, 7), 40000, np.uint16))


def _deep_colour(path: Path) -> bytes:
    """A PNG that says it has 16 bits a channel of RGB."""
    data = bytearray(encoded(COLOURS[0]))
    data[24] = 16
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _cmyk(path: Path) -> bytes:
    out = io.BytesIO()
    Image.new("CMYK", (7, 5)).save(out, "JPEG")
    return out.getvalue()


def _alpha(path: Path) -> bytes:
    return encoded(np.dstack([COLOURS[0], np.full((5, 7), 128, np.uint8)]))


def _animation(path: Path) -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(COLOURS[0]), Image.fromarray(COLOURS[1])]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _bomb(path: Path) -> bytes:
    data = bytearray(encoded(COLOURS[0]))
    data[16:24] = struct.pack(">II", 60000, 60000)
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _gif(path: Path) -> bytes:
    return encoded(COLOURS[0], "GIF")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: b"no image at all", "bad.png is no image of a kind that is read: BMP, JPEG"),
        (_gif, "bad.png is no image of a kind"),
        (lambda p: encoded(COLOURS[0])[:60], "bad.png is damaged"),
        (lambda p: encoded(COLOURS[0], "JPEG")[:-40], "bad.png is damaged"),
        (_sixteen_bits, "bad.png has 16 bits a channel"),
        (_deep_colour, "bad.png has 16 bits a channel"),
        (_cmyk, "bad.png is an image of mode CMYK"),
        (_alpha, "bad.png is transparent in places"),
        (_animation, "bad.png is an animation"),
        (_bomb, "bad.png has more than 89478485 pixels"),
        (
            lambda p: encoded(np.zeros((4, 7, 3), np.uint8)),
            "bad.png has shape [4, 7, 3], and the model takes [5, 7, 3]",
        ),
    ],
    ids=["text", "gif", "png cut", "jpeg cut", "16 bits", "16 bits RGB", "CMYK", "alpha", "frames", "bomb", "shape"],
)
def test_images_that_are_refused(make: Any, message: str, tmp_path: Path) -> None:
    _write(tmp_path / "i" / "a.png", encoded(COLOURS[0]))
    _write(tmp_path / "i" / "bad.png", make(tmp_path))
    with pytest.raises(StepError) as caught:
        _load(tmp_path, FileData(tmp_path, "i/*", "images"), PIXELS)
    assert message in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("make", [
    lambda: encoded(GRAY),
    lambda: encoded(np.dstack([GRAY, GRAY, GRAY, np.full_like(GRAY, 255)])),
    lambda: encoded(np.dstack([GRAY, np.full_like(GRAY, 255)])),
], ids=["gray", "opaque", "opaque gray"])  # fmt: skip
def test_images_that_become_rgb(make: Any, tmp_path: Path) -> None:
    _write(tmp_path / "i" / "a.png", make())
    [fed] = _load(tmp_path, FileData(tmp_path, "i/*", "images"), PIXELS)
    assert (fed == 9).all()


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS[0]).quantize(200)
    image.save(tmp_path / "a.png")
    [fed] = _load(tmp_path, FileData(tmp_path, "a.png", "images"), PIXELS)
    np.testing.assert_array_equal(fed[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("size", "shape", "hint"),
    [
        ((9, 8), ("n", 5, 7, 3), "add {resize: [5, 7]} to preprocess.image"),
        ((5, 7), ("n", 3, 5, 7), "add {layout: nchw} to preprocess.image"),
        ((5, 7), ("n", 5, 7, 1), "add {colour: gray} to preprocess.image"),
        ((9, 8), ("n", 1, 5, 7), "add {resize: [5, 7]}, {colour: gray}, {layout: nchw} to preprocess.image"),
    ],
)
def test_what_an_image_lacks_is_named(size: Any, shape: Any, hint: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.png", encoded(np.zeros((*size, 3), np.uint8)))
    with pytest.raises(StepError) as caught:
        _load(tmp_path, FileData(tmp_path, "a.png", "images"), TensorSpec("image", "float32", shape))
    assert caught.value.hint == hint


def test_open_axes_take_images_of_one_size(tmp_path: Path) -> None:
    spec = TensorSpec("image", "float32", ("n", "h", "w", 3))
    _write(tmp_path / "i" / "a.png", encoded(COLOURS[0]))
    assert _load(tmp_path, FileData(tmp_path, "i/*", "images"), spec)[0].shape == (2, 5, 7, 3)
    _write(tmp_path / "i" / "b.png", encoded(COLOURS[0][:4]))
    with pytest.raises(StepError, match=r"b\.png has shape \[4, 7, 3\] and a\.png \[5, 7, 3\]"):
        _load(tmp_path, FileData(tmp_path, "i/*", "images"), spec)


def test_images_feed_one_input(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", encoded(COLOURS[0]))
    with pytest.raises(StepError, match=r"only input of a model, and this one has 2: image, other") as caught:
        _load(tmp_path, FileData(tmp_path, "a.png", "images"), PIXELS, TensorSpec("other", "float32", ("n", 1)))
    assert "csv: FILE" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("size", "shape", "dtype", "message"),
    [
        (23, (2, 3), "float32", "a.bin has 23 bytes, and a sample of input image: float32 [n, 2, 3] takes 24 bytes"),
        (25, ("l", 3), "float32", "takes 12 bytes or a multiple"),
        (24, ("l", "m"), "float32", "has several open axes"),
        (6, (2, 3), "bool", "a.bin holds bytes other than 0 and 1"),
        (24, (2, 3), "bfloat16", "cannot be read from raw bytes"),
    ],
)
def test_raw_files_that_do_not_fit(size: int, shape: Any, dtype: str, message: str, tmp_path: Path) -> None:
    _write(tmp_path / "a.bin", b"\x07" * size)
    with pytest.raises(StepError) as caught:
        _load(tmp_path, FileData(tmp_path, "a.bin", "raw"), TensorSpec("image", dtype, ("n", *shape)))
    assert message in caught.value.message


def test_an_open_axis_of_raw_files_is_as_long_as_they_are(tmp_path: Path) -> None:
    _write(tmp_path / "a.bin", np.arange(12, dtype="<i8").tobytes())
    [fed] = _load(tmp_path, FileData(tmp_path, "a.bin", "raw"), TensorSpec("ids", "int64", ("n", "length", 3)))
    np.testing.assert_array_equal(fed[0], np.arange(12).reshape(4, 3))


def test_nan_in_a_file_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "d" / "a.bin", VALUES[0].tobytes())
    _write(tmp_path / "d" / "b.bin", (VALUES[0] * np.nan).tobytes())
    with pytest.raises(StepError, match=r"b\.bin holds NaN"):
        _load(tmp_path, FileData(tmp_path, "d/*", "raw"), FLOATS)


def test_values_beyond_the_inputs_type_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "a.npy", _npy(np.full((2, 3), 2**40)))
    _write(tmp_path / "l.csv", "f\na.npy\n")
    data = ColumnData(tmp_path / "l.csv", "f", False)
    with pytest.raises(StepError, match=r"has a value outside int32"):
        _load(tmp_path, data, TensorSpec("image", "int32", ("n", 2, 3)))
    with pytest.raises(StepError, match=r"a\.npy becomes infinite in preprocessing"):
        _load(tmp_path, data, TensorSpec("image", "float16", ("n", 2, 3)))


def test_files_differ_in_number(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        _write(tmp_path / name, VALUES[0].tobytes())
    both = Interface((FLOATS, TensorSpec("other", "float32", ("n", 2, 3))), ())
    sources = {f"data.{name}": FileData(tmp_path, f"{at}/*", "raw") for name, at in (("image", "a"), ("other", "b"))}
    with pytest.raises(StepError, match="image has 2, other has 1"):
        batches.load(bring(tmp_path, sources), both, {})


def test_weak_signatures_do_not_make_an_image_of_raw_values(tmp_path: Path) -> None:
    """Values whose first bytes happen to be "BM", as a BMP file's are."""
    values = np.frombuffer(b"BM" + bytes(22), np.float32).reshape(2, 3)
    _write(tmp_path / "a.dat", values.tobytes())
    _write(tmp_path / "l.csv", "f\na.dat\n")
    [fed] = _load(tmp_path, ColumnData(tmp_path / "l.csv", "f", False), FLOATS)
    np.testing.assert_array_equal(fed[0], values)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """Only what is asked for is decoded: here the third batch, of three."""
    names = [f"{index}.png" for index in range(6)]
    for index, name in enumerate(names):
        _write(tmp_path / "i" / name, encoded(COLOURS[index]))
    inputs = bring(tmp_path, {ALL_INPUTS: FileData(tmp_path, "i/*", "images")})
    graph = Interface((PIXELS,), ())
    samples = batches.load(inputs, graph, {})
    read: list[int] = []
    lazy = samples.arrays["image"]
    assert isinstance(lazy, batches.Encoded)
    from dataclasses import replace

    watched = replace(lazy, read=lambda index: read.append(index) or lazy.read(index))  # type: ignore[func-returns-value]  # counts
    found = list(batches.batches(replace(samples, arrays={"image": watched}), graph, {}, 2, (4, 6)))
    assert read == [4, 5]
    np.testing.assert_array_equal(found[0].feeds["image"], COLOURS[4:6])
