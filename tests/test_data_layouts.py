"""The layouts of known data sets in experiments/data, each read from a small generated tree of the same layout."""

from __future__ import annotations

import csv as tables
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p2pfl.data import Dataset, folder, layout
from p2pfl.data.partition import by_site, describe, iid
from p2pfl.data.volumes import VolumeTable
from p2pfl.errors import DataError

LAYOUTS = Path(__file__).parents[1] / "experiments" / "data"
RNG = np.random.default_rng(0)
# What is drawn is the same for every test: no figure depends on it.
GREY = RNG.integers(0, 256, (40, 36)).astype(np.uint8)
VOLUME = RNG.integers(0, 900, (12, 10, 104)).astype(np.int16)


def picture(root: Path, name: str, array: np.ndarray = GREY) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def table(root: Path, name: str, head: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        tables.writer(file, delimiter=delimiter).writerows([head, *rows] if head else rows)


def nifti(root: Path, name: str, array: np.ndarray) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [medical]")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def mask(shape: Sequence[int], values: Sequence[int]) -> np.ndarray:
    """Blocks of each value; the last plane holds the first value only."""
    found = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        found[2 * place : 2 * place + 2, 2:8] = value
    found[:, :, -1] = values[0]
    return found


def metaimage(root: Path, name: str, array: np.ndarray) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[array.dtype.name]
    size = " ".join(map(str, array.shape))
    raw = path.with_suffix(".raw").name
    path.write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = {kind}\nElementDataFile = {raw}\n", "ascii"
    )
    path.with_suffix(".raw").write_bytes(array.tobytes(order="F"))


# ------------------------------------------------------------------------------------------ one small tree for each


def covid19_radiography(root: Path) -> None:
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        for i in range(1, 6):
            picture(root, f"{name}/images/{name}-{i}.png")
            white = np.zeros((20, 18), np.uint8)
            white[5:12, 5:11] = 255
            picture(root, f"{name}/masks/{name}-{i}.png", white)


def covidx(root: Path) -> None:
    for part, count in (("train", 12), ("test", 4)):
        rows = [
            (f"p{part}{i // 2}", f"{part}{i}.png", ("negative", "positive")[i % 2], ("rsna", "bimcv")[i // 2 % 2])
            for i in range(count)
        ]
        table(root, f"{part}.txt", [], rows, " ")
        for _, name, *_ in rows:
            picture(root, f"{part}/{name}")


def chexpert(root: Path) -> None:
    labels = ["No Finding", "Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    for part, count in (("train", 6), ("valid", 3)):
        rows = []
        for i in range(count):
            for view in ("1_frontal", "2_lateral"):
                name = f"{part}/patient{i:05d}/study1/view{view}.jpg"
                rows.append(
                    [
                        "CheXpert-v1.0-small/" + name,
                        "Male",
                        50,
                        view[2:].title(),
                        "AP",
                        "",
                        "1.0",
                        "-1.0",
                        "0.0",
                        "",
                        "1.0",
                    ]
                )
                picture(root, name)
        table(root, f"{part}.csv", ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *labels], rows)


def chestxray14(root: Path) -> None:
    names = [f"{i:08d}_00{j}.png" for i in range(1, 7) for j in range(2)]
    findings = ["No Finding", "Cardiomegaly|Edema", "Hernia"]
    rows = [[name, findings[i % 3], i % 2, i // 2 + 1, 50, "M", "PA", 1, 1, 1, 1, ""] for i, name in enumerate(names)]
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
            "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""]  # fmt: skip
    table(root, "Data_Entry_2017.csv", head, rows)
    for i, name in enumerate(names):
        picture(root, f"images_{i % 3 + 1:03d}/images/{name}")
    (root / "train_val_list.txt").write_text("\n".join(names[:8]) + "\n", "utf-8")
    (root / "test_list.txt").write_text("\n".join(names[8:]), "utf-8")


def acdc(root: Path) -> None:
    for part, first in (("training", 1), ("testing", 101)):
        for i in range(first, first + 2):
            for frame in ("01", "12"):
                base = f"{part}/patient{i:03d}/patient{i:03d}_frame{frame}"
                nifti(root, base + ".nii.gz", VOLUME[:, :, :4])
                nifti(root, base + "_gt.nii.gz", mask((12, 10, 4), (0, 1, 2, 3)))
            nifti(root, f"{part}/patient{i:03d}/patient{i:03d}_4d.nii.gz", np.zeros((12, 10, 4, 2), np.int16))


def mnms(root: Path) -> None:
    rows = []
    for i, place in enumerate(["Training/Labeled"] * 4 + ["Validation"] * 2 + ["Testing"] * 2):
        code = f"A{i}B{i}"
        both = np.zeros((12, 10, 3, 6), np.uint8)
        both[..., 1], both[..., 4] = mask((12, 10, 3), (0, 1, 2, 3)), mask((12, 10, 3), (0, 3, 2, 1))
        nifti(root, f"{place}/{code}/{code}_sa.nii.gz", RNG.integers(0, 500, (12, 10, 3, 6)).astype(np.int16))
        nifti(root, f"{place}/{code}/{code}_sa_gt.nii.gz", both)
        rows.append([i, code, "Siemens", "A", i % 2 + 1, 1, 4])
    head = ["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES"]
    table(root, "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", head, rows)


def isic2018(root: Path) -> None:
    names = [f"ISIC_{i:07d}" for i in range(28)]
    classes = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    rows = [[name, *(float(i // 2 % 7 == c) for c in range(7))] for i, name in enumerate(names)]
    table(
        root, "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", ["image", *classes], rows
    )
    groups = [[name, f"HAM_{i // 2}", "histopathology"] for i, name in enumerate(names)]
    table(root, "ISIC2018_Task3_Training_LesionGroupings.csv", ["image", "lesion_id", "diagnosis_confirm_type"], groups)
    for name in names:
        picture(root, f"ISIC2018_Task3_Training_Input/{name}.jpg", np.stack([GREY] * 3, axis=2))


def isic2018_lesions(root: Path) -> None:
    for i in range(5):
        picture(root, f"ISIC2018_Task1-2_Training_Input/ISIC_{i:07d}.jpg", np.stack([GREY] * 3, axis=2))
        white = np.where(np.arange(40 * 36).reshape(40, 36) % 36 < 12, 255, 0).astype(np.uint8)
        picture(root, f"ISIC2018_Task1_Training_GroundTruth/ISIC_{i:07d}_segmentation.png", white)


def ham10000(root: Path) -> None:
    classes = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    rows = [
        [
            f"HAM_{i // 2}",
            f"ISIC_{i}",
            classes[i // 2 % 7],
            "histo",
            50,
            "male",
            "back",
            ("rosendahl", "vidir_modern")[i // 2 % 2],
        ]
        for i in range(56)
    ]
    head = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    table(root, "HAM10000_metadata", head, rows)
    for i in range(56):
        picture(root, f"HAM10000_images_part_{i % 2 + 1}/ISIC_{i}.jpg", np.stack([GREY] * 3, axis=2))


def adni(root: Path) -> None:
    head = ["RID", "PTID", "VISCODE", "DX_bl", "AGE", "PTGENDER", "PTEDUCAT", "APOE4", "MMSE", "Ventricles",
            "Hippocampus", "WholeBrain", "Entorhinal", "Fusiform", "MidTemp", "ICV"]  # fmt: skip
    rows = []
    for i in range(54):
        site = ("011", "022", "099")[0 if i < 26 else 1 if i < 50 else 2]  # 099 has 4 rows
        for visit in ("bl", "m06"):
            diagnosis = ("CN", "LMCI", "AD", "EMCI")[i % 4 if i >= 46 else i % 3]
            numbers = [*RNG.normal(size=9)]
            numbers[3] = "" if i == 5 else numbers[3]
            rows.append(
                [i, f"{site}_S_{i:04d}", visit, diagnosis, 70 + i % 9, ("Male", "Female")[i % 2], *numbers, 1500 + i]
            )
    table(root, "ADNIMERGE.csv", head, rows)


def abide(root: Path) -> None:
    rows = []
    for i in range(26):
        name = "no_filename" if i == 3 else f"S_{i:07d}"
        rows.append([i, i, 50000 + i, ("NYU", "UM_1")[i % 2], name, i // 2 % 2 + 1])
        if i != 3:
            path = root / f"Outputs/cpac/filt_global/rois_ho/{name}_rois_ho.1D"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, RNG.normal(size=(9, 6)), header="#2001\t#2002", delimiter="\t")
    table(
        root, "Phenotypic_V1_0b_preprocessed1.csv", ["", "Unnamed: 0", "SUB_ID", "SITE_ID", "FILE_ID", "DX_GROUP"], rows
    )


def ukbiobank_t1(root: Path) -> None:
    rows = [[1000000 + i, i % 2, 11025 + i // 6] for i in range(12)]
    table(root, "fields.csv", ["eid", "31-0.0", "54-2.0"], rows)
    for eid, *_ in rows:
        nifti(root, f"{eid}_20252_2_0/T1/T1_brain_to_MNI.nii.gz", np.tile(VOLUME[:, :, :52], (5, 7, 1)))


def ukbiobank_tissue(root: Path) -> None:
    for i in range(3):
        brain = np.tile(VOLUME[:, :, :48], (4, 5, 1))
        nifti(root, f"{1000000 + i}_20252_2_0/T1/T1_brain.nii.gz", brain)
        nifti(root, f"{1000000 + i}_20252_2_0/T1/T1_fast/T1_brain_seg.nii.gz", mask(brain.shape, (0, 1, 2, 3)))


def adni_t1(root: Path) -> None:
    rows = []
    for i in range(24):
        site = ("011", "022", "099")[0 if i < 11 else 1 if i < 22 else 2]  # 099 has 2 rows
        rows.append(
            [
                f"I{i}",
                f"{site}_S_{i // 2:04d}",
                ("CN", "MCI", "AD", "SMC")[3 if i == 5 else i % 3],
                "M",
                70,
                "sc",
                "MRI",
            ]
        )
        folder = f"ADNI/{rows[-1][1]}/MPR__GradWarp__N3__Scaled/2005-08-26_11_20_0{i % 2}.0/I{i}"
        nifti(root, f"{folder}/ADNI_{rows[-1][1]}_MR_MPR__GradWarp__N3__Scaled_Br_I{i}.nii", np.tile(VOLUME, (5, 7, 1)))
    head = ["Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Modality"]
    table(root, "collection.csv", head, rows)


def tumours(root: Path, prefix: str) -> None:
    for i in range(6):
        for name in ("flair", "t1", "t1ce", "t2"):
            nifti(root, f"{prefix}{i:05d}/{prefix}{i:05d}_{name}.nii.gz", VOLUME + len(name))
        nifti(root, f"{prefix}{i:05d}/{prefix}{i:05d}_seg.nii.gz", mask((12, 10, 104), (0, 1, 2, 4)))


def brats(root: Path) -> None:
    tumours(root, "BraTS2021_")


def fets(root: Path) -> None:
    tumours(root, "FeTS2022_")
    table(
        root, "partitioning_1.csv", ["Partition_ID", "Subject_ID"], [[i % 2 + 1, f"FeTS2022_{i:05d}"] for i in range(6)]
    )


def rsna_pneumonia(root: Path) -> None:
    rows: list[list[object]] = []
    for i in range(8):
        boxes = [["", "", "", ""]] if i % 2 == 0 else [[1, 2, 3, 4], [5, 6, 7, 8]]
        rows += [[f"id{i}", *box, i % 2] for box in boxes]
        dicom(root / f"stage_2_train_images/id{i}.dcm", GREY)
    table(root, "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], rows)


def dicom(path: Path, array: np.ndarray, **fields: Any) -> None:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom, of the extra [medical]")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    bits = array.dtype.itemsize * 8
    data.Rows, data.Columns = array.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)


def promise12(root: Path) -> None:
    for i in range(4):
        metaimage(root, f"training_data/Case{i:02d}.mhd", VOLUME[:, :, :5])
        metaimage(root, f"training_data/Case{i:02d}_segmentation.mhd", mask((12, 10, 5), (0, 1)))


def kermany_pneumonia(root: Path) -> None:
    for part in ("train", "val", "test"):
        for i in range(4):
            picture(root, f"{part}/PNEUMONIA/person{i}_bacteria_{i}.jpeg")
            picture(root, f"{part}/NORMAL/IM-01{i:02d}-0001.jpeg")


def medmnist(root: Path) -> None:
    rows = []
    for part, word in (("train", "TRAIN"), ("val", "VALIDATION"), ("test", "TEST")):
        for i in range(4):
            rows.append([word, f"{part}{i}_{i % 2}.png", i % 2])
            picture(root, f"pneumoniamnist/{part}{i}_{i % 2}.png", GREY[:28, :28])
    table(root, "pneumoniamnist.csv", [], rows)


def fastmri_knee(root: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="fastMRI needs h5py, of the extra [medical]")
    for part, number, acquisition in (("train", 1, "CORPD_FBK"), ("train", 2, "CORPDFS_FBK"), ("val", 3, "CORPD_FBK")):
        path = root / f"singlecoil_{part}" / f"file100000{number}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            space = file.create_dataset("kspace", (11, 640, 368), np.complex64)
            images = file.create_dataset("reconstruction_esc", (11, 320, 320), np.float32)
            space[10, 320, 184], images[10] = 1e-4, 1e-6
            file.attrs.update(acquisition=acquisition, max=1e-6, norm=1e-4, patient_id=f"{number:064x}")


def covidx_three(root: Path) -> None:
    for part, count in (("train", 12), ("test", 6)):
        classes = ("normal", "pneumonia", "COVID-19")
        rows = [
            (f"{part[1]}-{i // 2}", f"{part}{i}.png", classes[i // 2 % 3], ("cohen", "rsna")[i // 2 % 2])
            for i in range(count)
        ]
        table(root, f"{part}_COVIDx_CXR-3A.txt", [], rows, " ")
        for _, name, *_ in rows:
            picture(root, f"{part}/{name}")


def kaggle_retinopathy(root: Path) -> None:
    names = [f"{i}_{eye}" for i in range(10, 20) for eye in ("left", "right")]
    table(root, "trainLabels.csv", ["image", "level"], [[name, i // 4 % 5] for i, name in enumerate(names)])
    for name in names:
        picture(root, f"train/{name}.jpeg", np.stack([GREY] * 3, axis=2))


def rsna_hemorrhage(root: Path) -> None:
    """Six slices of each of four patients, of which one is damaged; two are listed twice."""
    names = [f"ID_{i:09x}" for i in range(23)] + ["ID_6431af929"]
    kinds = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    lines = [
        [f"{name}_{kind}", int(i % 3 == 1 and kind in ("subdural", "any"))]
        for i, name in enumerate(names)
        for kind in kinds
    ]
    table(root, "stage_2_train.csv", ["ID", "Label"], [*lines, *lines[6:18]])
    for i, name in enumerate(names):
        told = {"PatientID": f"ID_p{i // 6}", "RescaleSlope": 1, "RescaleIntercept": -100}
        dicom(root / f"stage_2_train/{name}.dcm", GREY, **told)


def tcga_crc_tiles(root: Path) -> None:
    for i in range(12):
        slide = f"TCGA-{('AA', 'G4')[i % 2]}-{3700 + i // 3}-01Z-00-DX1"
        folder = f"CRC_DX_{('TRAIN', 'TEST')[i % 4 == 3]}/{('MSS', 'MSIMUT')[i // 3 % 2]}"
        picture(root, f"{folder}/blk-YYNNMCRNWWE{'ABCDEFGHIJKL'[i]}-{slide}.png", np.stack([GREY] * 3, axis=2))


def tcga_brca(root: Path) -> None:
    features = tomllib.loads((LAYOUTS / "tcga_brca.toml").read_text("utf-8"))["features"]["columns"]
    rows, parts = [], []
    for i in range(18):
        rows.append([f"TCGA-AO-{i:04d}", 40 + i, *(i // 2**k % 2 for k in range(38)), float(i % 3 == 0), 100.0 + i])
        part = ("train", "test")[i >= 12]
        parts.append([rows[-1][0], part, f"{part}_{i % 6}"])
    table(root, "brca.csv", ["pid", *features, "E", "T"], rows)
    table(root, "dataset_creation_scripts/train_test_split.csv", ["pid", "fold", "fold2"], parts)


def ukbiobank_fields(root: Path) -> None:
    head = ["eid", "31-0.0", "54-0.0", "21022-0.0", "21001-0.0", "48-0.0", "50-0.0", "4079-0.0", "4080-0.0", "2443-0.0"]
    rows = []
    for i in range(52):
        centre = 11010 if i < 24 else 11011 if i < 48 else 11023  # the last has 4 rows
        told = -3 if i == 7 else "" if i == 8 else int(i % 3 == 0)
        waist = "" if i == 5 else 80 + i
        rows.append([1000000 + i, i % 2, centre, 50 + i % 9, 20 + i % 7, waist, 160 + i % 20, 80, 120 + i % 30, told])
    table(root, "fields.csv", head, rows)


def brats2023(root: Path) -> None:
    for case in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000"):
        for name in ("t1n", "t1c", "t2w", "t2f"):
            nifti(root, f"{case}/{case}-{name}.nii.gz", VOLUME)
        nifti(root, f"{case}/{case}-seg.nii.gz", mask(VOLUME.shape, (0, 1, 2, 3)))


# name: (its tree, rows of train, test and validation, shape of a row, sites)
CASES: dict[str, tuple[Callable[[Path], None], tuple[int, int, int], tuple[int, ...], tuple[str, ...]]] = {
    "covid19_radiography": (covid19_radiography, (16, 4, 0), (64, 64, 1), ()),
    "covid19_radiography_lungs": (covid19_radiography, (16, 4, 0), (64, 64, 1), ()),
    "covidx": (covidx, (12, 4, 0), (64, 64, 1), ("bimcv", "rsna")),
    "covidx_three": (covidx_three, (14, 4, 0), (64, 64, 1), ("cohen", "rsna")),
    "kaggle_retinopathy": (kaggle_retinopathy, (16, 4, 0), (128, 128, 3), ()),
    "rsna_hemorrhage": (rsna_hemorrhage, (17, 6, 0), (64, 64, 1), ()),
    "tcga_crc_tiles": (tcga_crc_tiles, (9, 3, 0), (64, 64, 3), ("AA", "G4")),
    "tcga_brca": (tcga_brca, (12, 6, 0), (39,), ("0", "1", "2", "3", "4", "5")),
    "ukbiobank_fields": (ukbiobank_fields, (37, 9, 0), (8,), ("11010", "11011")),
    "brats2023": (brats2023, (96, 3, 0), (64, 64, 64, 4), ()),
    "chexpert": (chexpert, (6, 3, 0), (64, 64, 1), ()),
    "chestxray14": (chestxray14, (8, 4, 0), (64, 64, 1), ()),
    "acdc": (acdc, (12, 12, 0), (128, 128, 1), ()),
    "mnms": (mnms, (24, 8, 0), (128, 128, 1), ("1", "2")),
    "isic2018": (isic2018, (22, 6, 0), (64, 64, 3), ()),
    "isic2018_lesions": (isic2018_lesions, (4, 1, 0), (64, 64, 3), ()),
    "ham10000": (ham10000, (44, 12, 0), (64, 64, 3), ("rosendahl", "vidir_modern")),
    "adni": (adni, (39, 10, 0), (13,), ("011", "022")),
    "adni_t1": (adni_t1, (17, 4, 0), (64, 64, 80, 1), ("011", "022")),
    "ukbiobank_t1": (ukbiobank_t1, (10, 2, 0), (60, 60, 72, 1), ("11025", "11026")),
    "ukbiobank_tissue": (ukbiobank_tissue, (64, 1, 0), (64, 64, 64, 1), ()),
    "abide": (abide, (20, 5, 0), (15,), ("NYU", "UM_1")),
    "brats": (brats, (200, 40, 0), (96, 96, 4), ()),
    "fets": (fets, (160, 80, 0), (96, 96, 4), ("1", "2")),
    "rsna_pneumonia": (rsna_pneumonia, (6, 2, 0), (64, 64, 1), ()),
    "fastmri_knee": (fastmri_knee, (2, 1, 0), (640, 368, 2), ("CORPDFS_FBK", "CORPD_FBK")),
    "promise12": (promise12, (12, 4, 0), (96, 96, 1), ()),
    "kermany_pneumonia": (kermany_pneumonia, (8, 8, 8), (64, 64, 1), ()),
    "medmnist": (medmnist, (4, 4, 4), (28, 28, 1), ()),
}


def test_every_layout_has_a_tree() -> None:
    assert {file.stem for file in LAYOUTS.glob("*.toml")} == set(CASES)
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in CASES)


def read(root: Path, name: str, tree: Callable[[Path], None]) -> Dataset:
    tree(root)
    return folder.load(root, str(LAYOUTS / f"{name}.toml"), seed=1)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_reads_its_tree(tmp_path: Path, name: str) -> None:
    tree, sizes, shape, sites = CASES[name]
    found = read(tmp_path, name, tree)
    wanted = layout.read(LAYOUTS / f"{name}.toml")
    assert found.kind == wanted.kind and found.sites == sites
    assert found.train.x.shape[1:] == shape
    validation = 0 if found.validation is None else len(found.validation.y)
    assert (len(found.train.y), len(found.test.y), validation) == sizes, found.notes
    if wanted.format not in ("table", "series", "fastmri"):
        x = np.asarray(found.train.x[:8])
        assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.05
    if sites:
        assert all(len(rows) for rows in by_site(found, len(sites)).train)
    assert describe(iid(found, 2, 0), found)
    comment = (LAYOUTS / f"{name}.toml").read_text("utf-8")
    assert "Read off" in comment or "As covid19" in comment, "a layout says what it is known from"
    assert tomllib.loads(comment)["origin"]


def test_what_the_labels_of_some_layouts_mean(tmp_path: Path) -> None:
    found = read(tmp_path / "a", "chexpert", chexpert)
    assert found.classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert found.train.y.tolist() == [[0, 1, 0, 1, 1]] * 6  # -1 is read as 1, empty as 0
    assert any("'-1.0' as 1" in note for note in found.notes) and any("Frontal" in note for note in found.notes)
    found = read(tmp_path / "b", "chestxray14", chestxray14)
    words = [[found.classes[i] for i in np.flatnonzero(row)] for row in found.train.y]
    assert words[:3] == [[], ["Cardiomegaly", "Edema"], ["Hernia"]]
    found = read(tmp_path / "c", "rsna_pneumonia", rsna_pneumonia)
    assert (np.bincount(found.train.y) + np.bincount(found.test.y)).tolist() == [4, 4]
    found = read(tmp_path / "d", "brats", brats)
    assert sorted(np.unique(found.train.y).tolist()) == [0, 1, 2, 3]  # 4 is the fourth class
    assert found.train.y.shape == (200, 96, 96)
    found = read(tmp_path / "e", "adni", adni)
    assert found.features[:3] == ("AGE", "PTGENDER=Female", "PTGENDER=Male")
    assert any("filled 1 missing" in note for note in found.notes)


def test_slices_of_a_patient_stay_together_by_their_headers(tmp_path: Path) -> None:
    """A table with a line for each finding becomes a row for each slice, and whose it is stands in its header."""
    found = read(tmp_path, "rsna_hemorrhage", rsna_hemorrhage)
    assert found.classes[0] == "any" and found.classes[5] == "subdural"
    y = np.concatenate([found.train.y, found.test.y])
    assert y.sum(axis=0).tolist() == [8, 0, 0, 0, 0, 8] and len(y) == 23  # ID_6431af929 is left out
    assert len(found.test.y) == 6, "all slices of one patient: a fifth of 23 would be 5"
    assert any("12 lines say again" in note for note in found.notes)
    text = (LAYOUTS / "rsna_hemorrhage.toml").read_text("utf-8")
    lines = (tmp_path / "stage_2_train.csv").read_text("utf-8").splitlines()
    for change, said in (
        (("_([a-z]+)$", "_(sub[a-z]+)$"), "line 2: pivot.name: finding is empty"),
        (("PatientID", "Patient"), "'Patient': no such keyword of DICOM"),
        (('name = "finding"', 'name = "ID"'), "pivot: image 'ID_000000000' has no line for"),
    ):
        (tmp_path / "wrong.toml").write_text(text.replace(*change), "utf-8")
        with pytest.raises(DataError, match=said):
            folder.load(tmp_path, str(tmp_path / "wrong.toml"))
    (tmp_path / "stage_2_train.csv").write_text("\n".join([*lines[:3], *lines[4:]]), "utf-8")
    with pytest.raises(DataError, match=r"'ID_000000000' has no line for 'intraventricular' \(1 of 24 rows"):
        folder.load(tmp_path, str(LAYOUTS / "rsna_hemorrhage.toml"))


@pytest.mark.more
@pytest.mark.parametrize(
    "name, channels, classes, volumes",
    [("brats", 4, 4, 6), ("fets", 4, 4, 6), ("promise12", 1, 2, 4), ("acdc", 1, 4, 8), ("mnms", 1, 4, 16)],
)
def test_layouts_of_slices_are_read_as_whole_volumes(
    tmp_path: Path, name: str, channels: int, classes: int, volumes: int
) -> None:
    """`data.volume`: patches of the volumes, Dice of each, the sequences of an examination as channels."""
    tree, _, _, sites = CASES[name]
    tree(tmp_path)
    patches = VolumeTable(patch=(4, 8, 8), patches=6, foreground=1.0)
    found = folder.load(tmp_path, str(LAYOUTS / f"{name}.toml"), seed=1, volume=patches)
    assert found.train.x.shape[1:] == (4, 8, 8, channels) and found.train.y.shape[1:] == (4, 8, 8)
    assert len(found.classes) == classes and found.sites == sites
    assert found.train.case is not None and found.test.case is not None
    assert len(found.train.y) // 6 + len(np.unique(found.test.case.of)) == volumes
    assert set(np.unique(found.train.y[:])) == set(range(classes))


def test_a_case_is_in_one_part_only(tmp_path: Path) -> None:
    ham10000(tmp_path)
    for seed in range(3):
        # every lesion has two images, so a part that holds whole lesions is even at each site
        found = folder.load(tmp_path, str(LAYOUTS / "ham10000.toml"), seed=seed)
        assert found.test.site is not None
        assert all(count % 2 == 0 for count in np.bincount(found.test.site))
