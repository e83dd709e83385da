"""PET in Bq/ml as standardised uptake values, against values computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_folder import FILES, HEAD, dicom, pixels, read, wanted

from p2pfl.data import dictionary
from p2pfl.data.dictionary import Dictionary
from p2pfl.data.pixels import Entry, arrays
from p2pfl.errors import DataError

FLUORINE = 6586.2
"""Half life of 18F in seconds."""
STORED = np.array([[0, 1000], [20000, 40000]], np.uint16)
BY_HAND = 2.9212735e-4
"""70 kg = 70,000 g; 350 MBq at 08:30, of which at 09:30 2^(-3600 / 6586.2) = .684633 are left, 239.62 MBq."""
DAY = {"SeriesDate": "20140618", "AcquisitionDate": "20140618"}


def header(dose: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    """The fields of a PET scan of one hour after the injection, and others."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom, of the extra [medical]")
    item = pydicom.Dataset()
    tracer = {
        "RadionuclideTotalDose": 350e6, "RadionuclideHalfLife": FLUORINE, "RadiopharmaceuticalStartTime": "083000.00",
    }  # fmt: skip
    for name, value in (tracer | (dose or {})).items():
        if value is not None:
            setattr(item, name, value)
    fields = {
        "Modality": "PT", "Units": "BQML", "DecayCorrection": "START", "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PatientWeight": 70, "SeriesTime": "093000", "AcquisitionTime": "093012.5", **DAY,
        "RadiopharmaceuticalInformationSequence": [item], "RescaleSlope": 0.5, "RescaleIntercept": 0,
    }  # fmt: skip
    return {name: value for name, value in (fields | other).items() if value is not None}


@pytest.mark.parametrize(
    ("fields", "by"),
    [
        (lambda: header(), BY_HAND),
        (lambda: header({"RadiopharmaceuticalStartDateTime": "20140618083000.000000+0200"}), BY_HAND),
        (lambda: header(DecayCorrection="ADMIN"), 2e-4),
        # the series was written anew on the next day: what was acquired first says when the scan began
        (lambda: header(SeriesDate="20140619", AcquisitionTime="093000"), BY_HAND),
        # injected at 23:45 of the day before
        (lambda: header({"RadiopharmaceuticalStartTime": "2345"}, SeriesTime="004500", AcquisitionTime="01"), BY_HAND),
        (lambda: header(Units="GML", PatientWeight=None), 1.0),
    ],
    ids=["start", "date and time", "corrected to the injection", "written anew", "over midnight", "SUV already"],
)  # fmt: skip
def test_activity_becomes_what_it_is_by_hand(tmp_path: Path, fields: Any, by: float) -> None:
    path = dicom(tmp_path / "a.dcm", STORED, **fields())
    (x,) = pixels(path, "dicom", intensity="none", unit="SUV")
    np.testing.assert_allclose(x[..., 0], STORED * 0.5 * by, rtol=1e-5)
    (x,) = pixels(path, "dicom", window=(5.0, 10.0), unit="SUV")
    np.testing.assert_allclose(x[..., 0], np.clip(STORED * 0.5 * by / 10, 0, 1), rtol=1e-5)


def test_slices_of_a_series_and_windows_of_the_file(tmp_path: Path) -> None:
    """Each slice has a slope of its own; the scan began with the first of them."""
    for k, (slope, begin) in enumerate(((0.5, "093000"), (2.0, "093500"), (1.0, "094000"))):
        place = {"ImagePositionPatient": [0, 0, 3 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        own = header(RescaleSlope=slope, SeriesTime="120000", AcquisitionTime=begin, SeriesInstanceUID="1.2", **place)
        dicom(tmp_path / "s" / f"{k}.dcm", STORED, WindowCenter=17000, WindowWidth=34001, **own)
    (x,) = pixels(tmp_path / "s", "dicom", slices="volume", intensity="none", unit="SUV")
    np.testing.assert_allclose(x[..., 0], np.stack([STORED * s * BY_HAND for s in (0.5, 2.0, 1.0)]), rtol=1e-5)
    plain, converted = (pixels(tmp_path / "s", "dicom", slices="volume", **more)[0] for more in ({}, {"unit": "SUV"}))
    np.testing.assert_allclose(plain, converted, atol=1e-6)  # the file's own window shows the same


def test_sites_in_bq_and_in_suv_then_show_one_picture(tmp_path: Path) -> None:
    found = []
    for name, fields in (("a", header()), ("b", header(Units="GML", RescaleSlope=0.5 * BY_HAND))):
        layout_ = wanted("dicom", window=(2.5, 5.0), unit="SUV")
        found.append(arrays(layout_, Entry((dicom(tmp_path / f"{name}.dcm", STORED, **fields),))))
    np.testing.assert_allclose(found[0].x[0], found[1].x[0], rtol=1e-4)
    assert dictionary.differences(*(Dictionary("classes", ("a", "b"), image=each.facts) for each in found)) == ()
    assert found[0].facts is not None and found[0].facts.unit == "SUV"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (lambda: header(PatientWeight=None), "PatientWeight is missing, which SUV needs"),
        (lambda: header(PatientWeight=0), "PatientWeight=0: must be > 0"),
        (
            lambda: header(RadiopharmaceuticalInformationSequence=None),
            "RadiopharmaceuticalInformationSequence is missing",
        ),
        (lambda: header({"RadionuclideTotalDose": None}), "RadionuclideTotalDose is missing"),
        (lambda: header({"RadionuclideHalfLife": None}), "RadionuclideHalfLife is missing"),
        (lambda: header({"RadiopharmaceuticalStartTime": None}), "RadiopharmaceuticalStartTime is missing"),
        (lambda: header({"RadiopharmaceuticalStartDateTime": "20140616083000"}), "scan starts .* after the injection"),
        (lambda: header(SeriesDate=None), "SeriesDate is missing"),
        (lambda: header(AcquisitionTime=None), "AcquisitionTime is missing"),
        (
            lambda: header(SeriesDate="20140231"),
            "SeriesDate and SeriesTime '20140231' '093000': must be a date and a time",
        ),
        (lambda: header(DecayCorrection=None), "DecayCorrection is missing"),
        (lambda: header(DecayCorrection="NONE"), "DecayCorrection='NONE': must be START or ADMIN"),
        (lambda: header(CorrectedImage=["DECY"]), "CorrectedImage=.*needs ATTN and DECY"),
        (lambda: header(Units=None), "Units is missing"),
        (lambda: header(Units="CNTS"), "Units='CNTS' can't be made SUV"),
        (lambda: header(Units="GML", SUVType="LBM"), "Units='GML' can't be made SUV by body weight"),
        (lambda: header(Modality="CT"), "no PET, of which pixels.unit='SUV' is"),
    ],
)
def test_what_is_missing_is_refused_by_name(tmp_path: Path, fields: Any, message: str) -> None:
    path = dicom(tmp_path / "a.dcm", STORED, **fields())
    with pytest.raises(DataError, match=message) as refused:
        pixels(path, "dicom", intensity="none", unit="SUV")
    assert "a.dcm" in str(refused.value)


def test_ct_beside_pet_stays_what_it_is(tmp_path: Path) -> None:
    pet = dicom(tmp_path / "pet.dcm", STORED, **header())
    ct = dicom(tmp_path / "ct.dcm", STORED, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    (x,) = arrays(wanted("dicom", intensity="none", unit="SUV"), Entry((pet, ct))).x
    np.testing.assert_allclose(x[..., 0], STORED * 0.5 * BY_HAND, rtol=1e-5)
    np.testing.assert_allclose(x[..., 1], STORED - 1024.0, rtol=1e-5)


def test_the_unit_goes_with_dicom_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'pixels.unit="SUV": is of PET with format = "dicom"; format=\'image\' can'):
        read(tmp_path / "p", HEAD + FILES + '[pixels]\nunit = "SUV"\n')
