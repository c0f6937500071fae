#!/usr/bin/env bash
# Everything that docs/benchmarks.md and docs/paper.md take from a GPU, in one call of limited length:
#     benchmarks/gpu_session.sh RESULTS_FOLDER [SECONDS] [suite|paper|both|tests|models]
# First the suite's kernels are compiled by parallel processes, then the suite runs alone, in parts of which each has a
# time limit (what a part has when it ends is kept), then the paper's sweep takes the seconds that are left (a rerun
# with the same folder goes on where it stopped). `tests`: timings of the ways on Hopper, then all GPU
# tests, whose failures are told as they come, since the log of a run that is cut short has no summary. Needs torch, triton, rich and typer in python3; no installation.
# `models`: 300 steps of DiNAT-tiny, the paper's tables of models, then FlexAttention, channels last and torch.compile on the
# smallest; what RESULTS_FOLDER/models.jsonl has is not measured again. The machine should do nothing else: small models wait
# for its host. A row takes 3 to 16 s once its kernels are compiled, StyleNAT at 1024 pixels 42 s.
# One H200, 16 cores: compiling 122 s, parts 28, 104, 54, 51 and 107 s; the sweep 27 s and then 0.37 s a problem.
set -u
OUT=$1 SECONDS_IN_ALL=${2:-590} WHAT=${3:-both}
mkdir -p "$OUT"
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=1
left() { echo $((SECONDS_IN_ALL - SECONDS)); }

part() { # name, seconds, options of `vicinal bench`
    local name=$1 limit=$2
    shift 2
    timeout "$limit" python3 -m vicinal bench --suite gpu --backend hopper --backend triton --samples 4 --seconds 0.1 \
        --json "$OUT/gpu-$name.json" "$@" > "$OUT/gpu-$name.log" 2>&1
    echo "suite, $name: exit status $?, $(left) s left"
}

if [ "$WHAT" = tests ]; then
    for i in $(seq 0 13); do timeout 150 python3 benchmarks/hopper_ways.py --compile $i 14 > "$OUT/compile-$i.log" 2>&1 & done
    wait
    timeout 150 python3 benchmarks/hopper_ways.py "$OUT/hopper-ways.jsonl" > "$OUT/hopper-ways.log" 2>&1
    echo "ways: exit status $?, $(left) s left"
    timeout $(($(left) - 20)) python3 -m pytest -m gpu -n 14 --dist worksteal --timeout 150 --tb short -v tests/gpu \
        > "$OUT/tests.log" 2>&1
    echo "tests: exit status $?, $(grep -c ' PASSED ' "$OUT/tests.log") passed, $(left) s left"
    grep -E ' (FAILED|ERROR) ' "$OUT/tests.log" | sed 's/^.*] //' | head -60
    exit
fi
if [ "$WHAT" = models ]; then
    rows() { # options of `vicinal bench models`
        [ "$(left)" -gt 60 ] || return
        timeout $(($(left) - 5)) python3 -m vicinal bench models --results "$OUT/models.jsonl" --compilers 14 --compile-seconds 90 \
            --samples 4 --seconds 0.5 --prepare-seconds 60 --row-seconds 60 --stop-after $(($(left) - 45)) "$@" >> "$OUT/models.log" 2>&1
        echo "$*: exit status $?, $(left) s left"
    }
    grep -q '"kind": "curve"' "$OUT/models.jsonl" 2>/dev/null || timeout 200 python3 benchmarks/curve.py "$OUT/models.jsonl"
    echo "curve: exit status $?, $(left) s left"
    usual=(--system fused --system naive --system gemm --system none)
    for table in 8 5 7 6; do rows --table $table "${usual[@]}"; done
    for model in nat_mini nat_tiny; do
        rows --table 5 --model $model --system fused --system FlexAttention --system "fused, channels last" --system "fused, compiled"
    done
    exit
fi
if [ "$WHAT" != paper ]; then
    python3 -c 'from vicinal.bench.cases import SUITES; print(*(c.name for c in SUITES["gpu"].cases), sep="\0", end="\0")' |
        xargs -0 -P 15 -I{} timeout 100 python3 -m vicinal bench --suite gpu --only {} --peer Flex \
            --samples 3 --seconds 0.01 > /dev/null 2>&1
    echo "suite's kernels compiled, $(left) s left"
    part lines 60 --peer flash --peer cuDNN --only dense --only 1-D
    part models 120 --peer flash --peer cuDNN --peer Flex --peer mask \
        --only Cosmos --only 33x33 --only 13x13 --only HDiT --only NAT
    part large 60 --peer flash --peer cuDNN --peer Flex --only 'window 80x80'
    part ltx 60 --peer Flex --peer flash --only LTX --forward
    part video 190 --samples 3 --peer flash --peer cuDNN --peer Flex --only 18x24x24
fi
if [ "$WHAT" != suite ] && [ "$(left)" -gt 60 ]; then
    timeout $(($(left) - 15)) python3 -m vicinal bench paper --results "$OUT/paper.jsonl" \
        --sample 300 --sample-others 100 --dtype float16 --dtype float32 --compiled 12 \
        --seconds $(($(left) - 30)) --problem-seconds 25 --compilers 13 --workers 8 > "$OUT/paper.log" 2>&1
    echo "paper's sweep: exit status $?, $(left) s left"
    timeout $(($(left) > 0 ? $(left) : 1)) python3 -m vicinal.bench.paper.counters "$OUT/paper.jsonl" >> "$OUT/paper.log" 2>&1
fi
