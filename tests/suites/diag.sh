#!/bin/sh
# One program per diagnostic, with the exact text it must give.
exec tests/diag/run.sh "$PEFTC_BUILD/peftc"
