"""Extractions of a folder of images that changes."""

import numpy as np
import pytest
from PIL import Image

from data_selection.commands.extract import main_extract
from data_selection.common.feature_table import load_features
from data_selection.embedding import extraction
from data_selection.images.record import load_record


def paint(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((28, 28), grey, np.uint8)).save(path)


def extract(folder, tmp_path, *flags):
    words = ["--dataset", folder, "--arch", "demo_vit", "--output_dir", tmp_path / "out", "--batch_size_per_gpu", 4]
    main_extract([str(word) for word in (*words, "--num_workers", 0, "--amp", "off", *flags)])
    path = tmp_path / "out" / "pool_train.npy"
    table = load_features(path)
    record = load_record(path, len(table))
    assert record.names == table.names
    return {name: table.features[i] for i, name in enumerate(table.names)}


def interrupt(folder, tmp_path, monkeypatch, *flags):
    """An extraction that ends after its first batch."""
    real = extraction._write
    count = []

    def broken(writer, *args):
        real(writer, *args)
        writer.save()
        count.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        extract(folder, tmp_path, *flags)
    monkeypatch.setattr(extraction, "_write", real)
    assert (tmp_path / "out" / "pool_train.partial").is_dir()
