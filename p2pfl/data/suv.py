"""Standardised uptake values (SUV) of PET by body weight, from activity in Bq/ml and what the DICOM header says.

SUV = activity [Bq/ml] x weight [g] / dose [Bq], the dose decayed to the time that the activity is corrected to: the
start of the scan (DecayCorrection START), or the injection (ADMIN). As the vendor-neutral description of the
Quantitative Imaging Biomarkers Alliance (QIBA) has it; DICOM PS3.3 C.8.9.1 and C.8.9.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from p2pfl.errors import DataError

LONGEST = 24 * 3600.0
"""Seconds from an injection to a scan, at most: more is a mistake of the header."""


def factor(headers: Sequence[Any], where: Path) -> float:
    """Return what Bq/ml of a series are to be multiplied by, to have SUV by body weight.

    Args:
        headers: of its files, or of the one of all its frames.
        where: the file or folder, for errors.

    Returns:
        The factor, in ml/Bq; 1 where values are SUV already (Units GML).

    Raises:
        DataError: what is needed is missing, or makes no sense.

    Example:
        >>> from types import SimpleNamespace
        >>> from pathlib import Path
        >>> from p2pfl.data.suv import factor
        >>> dose = SimpleNamespace(RadionuclideTotalDose=370e6, RadionuclideHalfLife=6586.2)
        >>> header = SimpleNamespace(Units="BQML", CorrectedImage=["DECY", "ATTN"], PatientWeight=74.0,
        ...     DecayCorrection="ADMIN", RadiopharmaceuticalInformationSequence=[dose])
        >>> factor([header], Path("scan.dcm"))
        0.0002
    """
    first = headers[0]
    units = str(_needed(first, "Units", where))
    if units == "GML" and getattr(first, "SUVType", None) in (None, "", "BW"):
        return 1.0
    if units != "BQML":
        raise DataError(f"{where}: Units={units!r} can't be made SUV by body weight; BQML, or GML by weight, can")
    corrected = getattr(first, "CorrectedImage", None)
    if corrected is not None and not {"ATTN", "DECY"} <= set([corrected] if isinstance(corrected, str) else corrected):
        raise DataError(
            f"{where}: CorrectedImage={corrected!r}: SUV needs ATTN and DECY, attenuation and decay corrected"
        )
    weight, dose = _above(first, "PatientWeight", where), _dose(first, where)
    total = _above(dose, "RadionuclideTotalDose", where)
    rule = str(_needed(first, "DecayCorrection", where))
    if rule == "ADMIN":
        return weight * 1000 / total
    if rule != "START":
        raise DataError(
            f"{where}: DecayCorrection={rule!r}: must be START or ADMIN, the time that activity is corrected to"
        )
    started, half = _scanned(headers, where), _above(dose, "RadionuclideHalfLife", where)
    waited = (started - _injected(dose, started, where)).total_seconds()
    if not 0 <= waited <= LONGEST:
        raise DataError(
            f"{where}: the scan starts {waited:g} s after the injection; must be 0 to {LONGEST:g}: repair the header"
        )
    return float(weight * 1000 / (total * 2 ** (-waited / half)))


def _needed(holder: Any, name: str, where: Path) -> Any:
    value = getattr(holder, name, None)
    if value is None or value == "":
        raise DataError(f"{where}: {name} is missing, which SUV needs; repair the header, or leave pixels.unit out")
    return value


def _above(holder: Any, name: str, where: Path) -> float:
    value = float(_needed(holder, name, where))
    if not value > 0:
        raise DataError(f"{where}: {name}={value:g}: must be > 0 for SUV; repair the header, or leave pixels.unit out")
    return value


def _dose(header: Any, where: Path) -> Any:
    items = _needed(header, "RadiopharmaceuticalInformationSequence", where)
    if len(items) != 1:
        raise DataError(f"{where}: RadiopharmaceuticalInformationSequence has {len(items)} items; SUV needs one tracer")
    return items[0]


def _scanned(headers: Sequence[Any], where: Path) -> datetime:
    """The start of the scan: that of the series, unless the series was written anew later than it was acquired."""
    acquired = min(_moment(header, "AcquisitionDate", "AcquisitionTime", where) for header in headers)
    series = _moment(headers[0], "SeriesDate", "SeriesTime", where)
    return min(series, acquired)


def _injected(dose: Any, started: datetime, where: Path) -> datetime:
    """The time of the injection, of the day before where it is later in the day than the scan."""
    if whole := str(getattr(dose, "RadiopharmaceuticalStartDateTime", None) or ""):
        return _read(whole[:8], re.split("[+-]", whole)[0][8:], "RadiopharmaceuticalStartDateTime", where)
    time = str(_needed(dose, "RadiopharmaceuticalStartTime", where))
    found = _read(f"{started:%Y%m%d}", time, "RadiopharmaceuticalStartTime", where)
    return found if found <= started else found - timedelta(days=1)


def _moment(header: Any, date: str, time: str, where: Path) -> datetime:
    day, hour = str(_needed(header, date, where)), str(_needed(header, time, where))
    return _read(day, hour, f"{date} and {time}", where)


def _read(day: str, hour: str, name: str, where: Path) -> datetime:
    """A date of DICOM (20140618) and a time (083045.5, or less of it)."""
    whole, _, part = hour.replace(":", "").partition(".")
    try:
        return datetime.strptime(f"{day.replace('.', '')}{whole.ljust(6, '0')}.{part or 0}", "%Y%m%d%H%M%S.%f")
    except ValueError as exc:
        raise DataError(f"{where}: {name} {day!r} {hour!r}: must be a date and a time; repair the header") from exc
