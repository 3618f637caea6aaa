#!/usr/bin/env bash
# Unpacks the COCO 2017 archives found anywhere below a folder: unpack_coco2017.sh DOWNLOADS DATA_ROOT
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: $0 DOWNLOADS DATA_ROOT" >&2
    exit 2
fi
for name in annotations_trainval2017.zip val2017.zip train2017.zip; do
    archive=$(find "$1" -name "$name" -print -quit)
    if [ -z "$archive" ]; then
        echo "error: no $name below $1" >&2
        exit 1
    fi
    unzip -q -n "$archive" -d "$2"
done
