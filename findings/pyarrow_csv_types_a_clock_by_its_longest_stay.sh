#!/usr/bin/env bash
# pyarrow 26.0.1 reads a column HH:MM as a time of day, or as text, by the longest stay in the file.
#
# Tables of intensive care count hours since admission as HH:MM, beyond 24:00. With stays of less than a day the column is
# `time32[s]`; one line with 24:10 makes all of it text. Read as a stream (`open_csv`), the first block of 1 MiB decides, and
# 24:10 behind it ends the reading with an error. polars 2.1.0 decides in the same way, and `Series.str.to_time` with
# `strict=False` makes null of 24:10; pandas' `to_timedelta` takes 24:10:00 but not 24:10. What helps: read it as text.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q polars==2.1.0 pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import io

import polars
import pyarrow.csv

HEAD, LINES = "time,rate\n", "00:30,70\n23:50,80\n"


def type_of_time(text):
    return str(pyarrow.csv.read_csv(io.BytesIO(text.encode())).schema.field("time").type)


short, long = type_of_time(HEAD + LINES), type_of_time(HEAD + LINES + "24:10,75\n")
print("pyarrow, stays of a day:", short, " of more:", long)
assert (short, long) == ("time32[s]", "string")
stream = pyarrow.csv.open_csv(io.BytesIO((HEAD + LINES * 100_000 + "24:10,75\n").encode()))
try:
    for _ in stream:
        pass
    raise SystemExit("24:10 past the first block was read")
except pyarrow.ArrowInvalid as error:
    print("pyarrow, 24:10 past the first block:", str(error)[:90])
texts = [HEAD + LINES, HEAD + LINES + "24:10,75\n"]
kinds = [polars.read_csv(io.StringIO(text), try_parse_dates=True).dtypes[0] for text in texts]
hours = polars.Series(["23:50", "24:10"]).str.to_time("%H:%M", strict=False).to_list()
print("polars:", kinds, hours)
assert kinds == [polars.Time, polars.String] and hours[1] is None
PYTHON
