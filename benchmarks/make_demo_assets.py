"""Makes what `lrcompress demo` ships: the checkpoint, 7,000 training and 2,500 test images of Fashion-MNIST.

    python benchmarks/train_networks.py demo --data DIR
    python benchmarks/make_demo_assets.py --data DIR

The images are the first ones of the original files, which are in random order. The checkpoint was trained on all
60,000 training images and has seen no test image. Fashion-MNIST: Zalando SE, MIT licence.
"""

import argparse
import gzip
import shutil
import struct
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "lrcompress" / "assets" / "fashion_mnist"
COUNTS = {"train": 7000, "t10k": 2500}


def take_first(source: Path, target: Path, count: int) -> None:
    """Writes the first `count` items of a gzipped idx file; without a time stamp, so that the bytes repeat."""
    content = gzip.decompress(source.read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    item = 1
    for length in shape[1:]:
        item *= length
    start = 4 + 4 * dimensions
    header = content[:4] + struct.pack(f">{dimensions}I", count, *shape[1:])
    target.write_bytes(gzip.compress(header + content[start : start + count * item], compresslevel=9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the gzipped idx files of Fashion-MNIST")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo.pt"))
    arguments = parser.parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{split}-{kind}-ubyte.gz"
            take_first(arguments.data / name, ASSETS / name, count)
    shutil.copyfile(arguments.checkpoint, ASSETS / "resnet.pt")
    total = sum(file.stat().st_size for file in ASSETS.iterdir())
    print(f"{total / 1e6:.2f} MB in {ASSETS.name}")


if __name__ == "__main__":
    main()
