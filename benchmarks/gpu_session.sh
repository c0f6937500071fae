#!/usr/bin/env bash
# Everything that the documentation takes from GPUs, in one call of limited length:
#     benchmarks/gpu_session.sh RESULTS_FOLDER SECONDS JOB...
# Every GPU takes the next job when it is done with one, on its own share of the cores. What a job has when its time, or
# the call's, ends is kept: results are written as they come. Kernels of the suite and of models are compiled first, by
# as many processes as there are cores, for at most COMPILE_SECONDS (75).
# Jobs: parts of the suite `gpu` with all peers (below), `models-N` (a table of the paper's, 5 to 8), `models-flex`
# (FlexAttention, channels last, torch.compile), `curve` (300 steps of DiNAT-tiny), `tests` (which in TESTS, for TEST_SECONDS), `ways`
# (the ways on Hopper), `tune` (the tuner on the suite and random problems), `paper` (the paper's sweep).
# Needs torch, triton, rich and typer in python3, timm for models; no installation. Peers that are installed run too: cuDNN's flex attention
# from PYTHONPATH (benchmarks/pack_cudnn_flex.py). An H200 took for a part 40 to 170 s, for a table of models 100 to 150 s.
set -u
OUT=$1 SECONDS_IN_ALL=$2
shift 2
mkdir -p "$OUT"
cd "$(dirname "$0")/.."
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=1
GPUS=$(nvidia-smi -L | wc -l) CORES=$(nproc) COMPILE_SECONDS=${COMPILE_SECONDS:-75}
SHARE=$((CORES / GPUS))
PEERS=(--peer flash --peer cuDNN --peer Flex)
ALL_PEERS=("${PEERS[@]}" --peer cudnn-flex) # it takes 20 to 40 s a problem to plan and compile
SYSTEMS=(--system fused --system naive --system gemm --system none)
left() { echo $((SECONDS_IN_ALL - SECONDS - 5)); }
least() { [ "$1" -lt "$(left)" ] && echo "$1" || left; }

compile() {
    local suite= tables=()
    for job in "$@"; do
        case $job in
        models-[5-8]) tables+=(--table "${job#models-}") ;;
        large | video | cosmos | lines | images | nat | dense | ltx) suite=1 ;;
        esac
    done
    [ -z "$suite" ] || python3 -c 'from vicinal.bench.cases import SUITES; print(*(c.name for c in SUITES["gpu"].cases), sep="\0", end="\0")' |
        timeout "$COMPILE_SECONDS" xargs -0 -P $((CORES / 2)) -I{} python3 -m vicinal bench --suite gpu --only {} \
            --peer Flex --samples 3 --seconds 0.01 > /dev/null 2>&1 &
    [ ${#tables[@]} -eq 0 ] || timeout "$COMPILE_SECONDS" python3 -m vicinal bench models --results "$OUT/.compiling.jsonl" "${tables[@]}" \
        "${SYSTEMS[@]}" --compilers $((CORES / 3)) --compile-seconds $((COMPILE_SECONDS - 8)) --stop-after 1 > "$OUT/compile.log" 2>&1 &
    wait
    rm -f "$OUT/.compiling.jsonl"
}
part() { # name, seconds, options of `vicinal bench`
    local name=$1 limit=$2
    shift 2
    timeout "$(least "$limit")" $PIN python3 -m vicinal bench --suite gpu --backend hopper --backend triton --samples 4 --seconds 0.1 \
        --json "$OUT/gpu-$name.json" "$@" > "$OUT/gpu-$name.log" 2>&1
}
models() { # name, seconds to prepare, for a row, options of `vicinal bench models`
    local name=$1 prepare=$2 row=$3
    shift 3
    timeout "$(left)" $PIN python3 -m vicinal bench models --results "$OUT/models-$name.jsonl" --samples 4 --seconds 0.5 \
        --prepare-seconds "$prepare" --row-seconds "$row" --stop-after $(($(left) - 30)) "$@" > "$OUT/models-$name.log" 2>&1
}
job() {
    case $1 in
    large) part large 150 "${ALL_PEERS[@]}" --only 'window 80x80' ;;
    video) part video 190 --samples 3 "${ALL_PEERS[@]}" --only 18x24x24 ;;
    cosmos) part cosmos 120 "${ALL_PEERS[@]}" --only Cosmos ;;
    lines) part lines 170 "${ALL_PEERS[@]}" --only 1-D ;;
    images) part images 150 "${ALL_PEERS[@]}" --only 33x33 --only 13x13 --only HDiT ;;
    nat) part nat 120 "${PEERS[@]}" --only NAT ;;
    dense) part dense 80 --peer flash --peer cuDNN --peer Flex --only dense --only 'causal in time' ;;
    ltx) part ltx 60 --peer Flex --only LTX ;;
    models-flex) TORCHINDUCTOR_COMPILE_THREADS=8 models flex 120 300 --table 5 --model nat_mini --model nat_tiny --system fused \
        --system FlexAttention --system 'fused, channels last' --system 'fused, compiled' ;;
    models-*) models "${1#models-}" 60 90 --table "${1#models-}" "${SYSTEMS[@]}" ;;
    curve) timeout "$(least 200)" $PIN python3 benchmarks/curve.py "$OUT/models-curve.jsonl" > "$OUT/curve.log" 2>&1 ;;
    tests) timeout "$(least "${TEST_SECONDS:-600}")" $PIN python3 -m pytest -m gpu -n $((SHARE - 1)) --dist worksteal --timeout 150 --tb short -v \
        ${TESTS:-tests/gpu} > "$OUT/tests.log" 2>&1 ;;
    ways) timeout "$(least 200)" $PIN python3 benchmarks/hopper_ways.py "$OUT/hopper-ways.jsonl" > "$OUT/hopper-ways.log" 2>&1 ;;
    tune)
        mkdir -p "$OUT/tune/tuning"
        timeout "$(left)" nice $PIN python3 benchmarks/tuning.py compile "$OUT/tune/done" 100 "$(left)" $((SHARE / 2)) > "$OUT/tune/compile.log" 2>&1 &
        timeout "$(left)" $PIN python3 benchmarks/tuning.py measure "$OUT/tune" "$OUT/tune/done" 100 $(($(left) - 5)) > "$OUT/tune/measure.log" 2>&1 ;;
    paper)
        timeout "$(left)" $PIN python3 -m vicinal bench paper --results "$OUT/paper.jsonl" --sample 300 --sample-others 100 \
            --dtype float16 --dtype float32 --compiled 12 --seconds $(($(left) - 15)) --problem-seconds 25 --compilers $((SHARE - 1)) \
            --workers $((SHARE / 2)) > "$OUT/paper.log" 2>&1 ;;
    *) echo "no such job: $1" && return 2 ;;
    esac
    echo "$1: exit status $?, $(left) s left (GPU $CUDA_VISIBLE_DEVICES)"
}
worker() {
    export CUDA_VISIBLE_DEVICES=$1
    PIN="taskset -c $(($1 * SHARE))-$((($1 + 1) * SHARE - 1))"
    while [ "$(left)" -gt 15 ] && next=$(flock "$QUEUE" sh -c "head -n 1 $QUEUE; sed -i 1d $QUEUE") && [ -n "$next" ]; do job "$next"; done
}

compile "$@"
echo "compiled, $(left) s left"
QUEUE=$(mktemp)
printf '%s\n' "$@" > "$QUEUE"
workers=()
for gpu in $(seq 0 $((GPUS - 1))); do
    worker "$gpu" &
    workers+=($!)
done
wait "${workers[@]}"
[ -s "$QUEUE" ] && echo "not begun: $(tr '\n' ' ' < "$QUEUE")"
grep -hE ' (FAILED|ERROR) ' "$OUT/tests.log" 2> /dev/null | sed 's/^.*] //' | head -60
rm -f "$QUEUE"
