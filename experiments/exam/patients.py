"""Patients of five hospitals: a chest X-ray each, and clinical values that go with what they have.

    python experiments/exam/patients.py experiments/exam/patients [--chests FILE] [--seed 0]

The X-rays and their diagnoses are real (PneumoniaMNIST: Kermany 2018; MedMNIST, CC BY 4.0): a hospital's training
patients are of its training images, and its test patients of its test images, each used once. The clinical values are
drawn, given the diagnosis and nothing else: so a picture and a table that are each right in part, for reasons of their
own. Of patients with pneumonia oxygen saturation is lower and CRP, temperature and the share who cough are higher
(VALUES); age and sex say nothing.

    HOSPITALS   training patients, and the gamma of the scanner, by which the same chest is darker or brighter
    birch       never measures CRP; elsewhere 5 % of the values are missing

Writes FOLDER/patients.csv and FOLDER/xrays/NUMBER.png.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CHESTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pneumoniamnist_rebuilt.npz"
HOSPITALS = {"ash": (50, 1.0), "birch": (70, 0.7), "cedar": (100, 1.0), "dale": (130, 1.5), "elm": (160, 1.2)}
TESTED = 120
"""Test patients of each."""
MISSING = 0.05


class Drawn(NamedTuple):
    """A value: normal, about another mean for each diagnosis."""

    normal: float
    pneumonia: float
    deviation: float


VALUES = {
    "saturation": Drawn(97.0, 95.3, 1.5),  # %
    "log_crp": Drawn(2.0, 2.7, 0.8),  # of mg/l
    "temperature": Drawn(37.2, 37.6, 0.7),  # degrees Celsius
}
COUGHS = (0.45, 0.65)
"""Share who cough, without and with pneumonia."""
COLUMNS = ("hospital", "split", "xray", "age", "sex", "saturation", "crp", "temperature", "cough", "diagnosis")


def values(ill: bool, rng: np.random.Generator) -> dict[str, str]:
    """The clinical values of a patient."""
    drawn = {name: rng.normal(each.pneumonia if ill else each.normal, each.deviation) for name, each in VALUES.items()}
    return {
        "age": f"{rng.uniform(1, 6):.1f}",
        "sex": "fm"[rng.integers(2)],
        "saturation": f"{min(drawn['saturation'], 100):.1f}",
        "crp": f"{np.exp(drawn['log_crp']):.1f}",
        "temperature": f"{drawn['temperature']:.1f}",
        "cough": "yes" if rng.random() < COUGHS[ill] else "no",
    }


def make(folder: Path, chests: Path, seed: int) -> None:
    """Write the table and its pictures."""
    with np.load(chests, allow_pickle=False) as file:
        parts = {name: (file[f"{name}_images"], file[f"{name}_labels"].reshape(-1)) for name in ("train", "test")}
    rng = np.random.default_rng([seed, 0xE8A])
    order = {name: rng.permutation(len(labels)).tolist() for name, (_, labels) in parts.items()}
    (folder / "xrays").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for hospital, (trained, gamma) in HOSPITALS.items():
        for split, many in (("train", trained), ("test", TESTED)):
            images, labels = parts[split]
            for _ in range(many):
                place = order[split].pop()
                name = f"xrays/{len(rows):04}.png"
                Image.fromarray(np.rint(255 * (images[place] / 255.0) ** gamma).astype(np.uint8)).save(folder / name)
                row = {"hospital": hospital, "split": split, "xray": name, **values(bool(labels[place]), rng)}
                for value in ("saturation", "crp", "temperature"):
                    if rng.random() < MISSING or (hospital == "birch" and value == "crp"):
                        row[value] = ""
                rows.append({**row, "diagnosis": ("normal", "pneumonia")[int(labels[place])]})
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the patients of five hospitals.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chests", type=Path, default=CHESTS, help="PneumoniaMNIST, with MedMNIST's keys")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make(given.folder, given.chests, given.seed)
