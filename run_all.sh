#!/usr/bin/env bash
# Sets up what is needed, once; then makes the figures, opens the notebooks or runs the tests. ./run_all.sh --help explains it.
set -euo pipefail

here=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
# Exists while a set-up is at work and holds its process number. A name with a dot: "$venv"/* leaves it in place.
unfinished=$venv/.set-up-unfinished

say() { printf 'run_all.sh: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

# The Python versions that will do, from pyproject.toml: 3.$oldest and later, before 3.$too_new.
bounds='^requires-python = ">=3\.([0-9]+),<3\.([0-9]+)"'
while IFS= read -r line; do
    if [[ $line =~ $bounds ]]; then oldest=${BASH_REMATCH[1]} too_new=${BASH_REMATCH[2]}; fi
done <"$here/pyproject.toml"
wanted="Python 3.$oldest to 3.$((too_new - 1))"

# Prints the version of the Python called $1, "3.11", or nothing if it does not run.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

supported() { [[ $1 =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= oldest && BASH_REMATCH[1] < too_new)); }

# Whether the Python called $1 holds the pinned packages for $part; prints what differs.
check() { "$1" -P "$here/fimoda_lib/run/environment.py" check "$part"; }

# Sets $active to the Python that is active and will do: FIMODA_PYTHON, else the first suitable one on the PATH; if
# there is none, $seen lists the versions that there are.
find_active() {
    local candidate version minor
    seen=
    if [[ -n ${FIMODA_PYTHON-} ]]; then
        version=$(version_of "$FIMODA_PYTHON")
        [[ $version ]] || stop "FIMODA_PYTHON is '$FIMODA_PYTHON', which does not run; give it the path of $wanted."
        supported "$version" || stop "FIMODA_PYTHON is '$FIMODA_PYTHON', which is Python $version; $wanted is needed."
        active=$FIMODA_PYTHON
        return
    fi
    set -- python python3
    for ((minor = oldest; minor < too_new; minor++)); do set -- "$@" "python3.$minor"; done
    for candidate; do
        version=$(version_of "$candidate")
        if supported "$version"; then active=$candidate; return; fi
        [[ -z $version || " $seen " == *" $version "* ]] || seen="${seen:+$seen and }$version"
    done
    return 1
}

usage() {
    cat <<TEXT
Sets up what is needed, once, then makes every figure of the paper, opens the notebooks, or runs the tests.

  ./run_all.sh                         every figure, small (quick profile), from data that need no download
  ./run_all.sh [options]               the same with the options below
  ./run_all.sh lab [notebook]          JupyterLab on the notebooks, or on one: 02, say; then options of jupyter lab
  ./run_all.sh test [pytest options]   the tests; paths such as tests/run/test_packaging.py count from this folder
  ./run_all.sh --help                  this text; needs no set-up

A second start goes on where the first one stopped: finished work is found, not repeated.

Set-up: if the active Python (conda, venv) holds the packages at the versions in pyproject.toml, it is used as it is.
Otherwise a folder .venv beside this script is made with $wanted and filled by pip, and used from then on.
That takes about two minutes with the CPU build of PyTorch, and longer with the CUDA build, of several GB, which
pip chooses on Linux. The profiles laptop, overnight and paper, and the tests, add an encoder for text, 83 MB. To start
afresh, remove .venv. For conda see the head of environment.yml. No package is ever installed outside .venv.

Environment variables:
  FIMODA_PYTHON   the Python to use instead of the active one: as it is if it holds the packages, else to make .venv
  FIMODA_DATA     the folder of the data files, as --data
  FIMODA_MKL      unchanged: on AMD processors MKL takes its own kernels for them, which are slower (docs/speed.md)

TEXT
    active=$(find_active 2>/dev/null && printf '%s' "$active") &&
        PYTHONPATH=$here "$active" -B -P -m fimoda_lib.run --help 2>/dev/null && return
    cat <<TEXT
Options (the main ones; the full list needs $wanted):
  --profile quick|laptop|overnight|paper   how much: minutes, hours, a night, everything (with a GPU)
  --only fig02 fig11 ...         these figures only
  --datasets energy ...          these data sets only
  --data DIR                     the folder of the data files
  --jobs N                       so many processes share the work (one for each GPU; else for each core, at most 4)
  --scheduler tcp://host:port    the workers of a running dask scheduler do the work
TEXT
}

# Fills .venv with the tested versions of what $part needs; -qq leaves pip's errors only.
install() {
    local extras pip_install=(.venv/bin/python -m pip install -qq --no-input --disable-pip-version-check)
    case $part in run) extras='' ;; text) extras='[text]' ;; test) extras='[test,text]' ;; esac
    cd -- "$here" && "${pip_install[@]}" --constraint constraints.txt --editable ".$extras" || return
    echo $$ >"$unfinished" # what is installed so far is complete
    # shellcheck disable=SC2046 # one word, name==version, for each package
    [[ $part != test ]] || "${pip_install[@]}" --no-deps $(.venv/bin/python fimoda_lib/run/environment.py no-deps)
}

# Makes or completes .venv; $1 says why it is not used as it is.
set_up() {
    local base site fresh='' reason=$1
    if [[ -e $unfinished ]]; then
        fresh=yes reason="the last set-up was interrupted"
        rm -f -- "$unfinished"
    elif ! { "$venv/bin/python" -m pip --version || "$venv/bin/python" -m ensurepip; } >/dev/null 2>&1; then
        fresh=yes reason=${reason:+its pip does not run}
    fi
    # found before anything is removed, and outside .venv even if that is the active one
    base=$("$active" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')

    { mkdir -p -- "$venv" && [[ -w $venv ]]; } || stop "$venv cannot be written; copy the project to a folder of yours."
    if ! (set -o noclobber; echo $$ >"$unfinished") 2>/dev/null; then use_venv; return; fi # another start was faster
    trap 'say "set-up interrupted; the next start does it anew."; exit 130' INT TERM HUP

    SECONDS=0
    if [[ $fresh ]]; then
        say "setting up .venv with Python $(version_of "$base")${reason:+ ($reason)}; this takes some minutes, once ..."
        rm -rf -- "${venv:?}"/*
        "$base" -m venv "$venv" || stop "$base could not make .venv (its message is above); on Debian and Ubuntu" \
            "install the package python3-venv, or name another Python with FIMODA_PYTHON."
    else
        say "updating .venv ($reason); this takes a minute or more, once ..."
    fi
    echo $$ >"$unfinished"
    if ! (install); then
        site=("$venv"/lib/python3*/site-packages)
        [[ ${site[0]} -nt $unfinished ]] || rm -f -- "$unfinished" # nothing changed: .venv is as good as before
        stop "set-up failed: pip could not install the packages (its message is above). It needs the network once;" \
            "then start again."
    fi
    reason=$(check "$venv/bin/python") || stop "set-up failed: in .venv, $reason; remove .venv and start again."
    rm -f -- "$unfinished"
    trap - INT TERM HUP
    say "set-up done in $SECONDS s."
}

# Sets $python to the one in .venv, which is made or completed if need be.
use_venv() {
    local process version waiting='' reason=''
    while process=$(cat -- "$unfinished" 2>/dev/null) && kill -0 "$process" 2>/dev/null; do
        [[ $waiting ]] || say "another start (process $process) is setting up .venv; waiting for it ..."
        waiting=yes
        sleep 1
    done
    version=$(version_of "$venv/bin/python")
    if [[ $version ]] && ! supported "$version"; then
        stop ".venv holds Python $version, and $wanted is needed; remove .venv and start again."
    fi
    if [[ $version && -n ${FIMODA_PYTHON-} && $version != $(version_of "$FIMODA_PYTHON") ]]; then
        stop ".venv holds Python $version, and FIMODA_PYTHON is another one; remove .venv, or unset FIMODA_PYTHON."
    fi
    python=$venv/bin/python
    if [[ -e $unfinished || -z $version ]] || ! reason=$(check "$python"); then set_up "$reason"; fi
}

case ${1--} in
    -* | lab | test | check | status | benchmark) ;;
    *) stop "got '$1', expected lab, test, check, status, benchmark, or options (--profile laptop); see --help." ;;
esac
if [[ ${1-} == test ]]; then
    part='test'
    shift
else
    part='run' previous=''
    for argument; do
        case $argument in -h | --help) usage; exit ;; esac
        case "$previous $argument" in # these need an encoder for SST-2
            "--profile laptop" | "--profile overnight" | "--profile paper") part='text' ;;
            *" --profile=laptop" | *" --profile=overnight" | *" --profile=paper") part='text' ;;
        esac
        previous=$argument
    done
fi

if ! find_active; then
    stop "$wanted is needed (found: ${seen:-none}); install it, activate an environment that has it, or name it with" \
        "FIMODA_PYTHON."
fi
if lacking=$(check "$active"); then
    python=$("$active" -c 'import sys; print(sys.executable)')
    say "using the active Python, $python."
else
    use_venv
    if [[ -n ${VIRTUAL_ENV-}${CONDA_PREFIX-} && ${VIRTUAL_ENV-} != "$venv" ]]; then
        say "using .venv; the active environment is not used, because $lacking."
    else
        say "using .venv."
    fi
fi

# MKL, in which PyTorch multiplies matrices on a CPU, takes slower kernels on processors that are not Intel's, whatever
# they can do, and knows by one function of its own. On AMD's with AVX2 a library is preloaded whose answer is yes
# (docs/speed.md: what it brings). Without a C compiler, and with FIMODA_MKL=unchanged, all stays as it is.
prefer_fast_mkl() {
    local processor compiler folder=$here/build/mkl
    local library=$folder/answers_intel.so
    [[ ${FIMODA_MKL-} != unchanged ]] && processor=$(cat /proc/cpuinfo 2>/dev/null) || return 0
    [[ $processor == *AuthenticAMD* && $processor == *" avx2 "* ]] || return 0
    if [[ ! -e $library ]]; then
        compiler=$(command -v cc || command -v gcc || command -v clang) && mkdir -p -- "$folder" &&
            echo 'int mkl_serv_intel_cpu_true(void) { return 1; }' >"$folder/$$.c" &&
            "$compiler" -shared -fPIC -o "$folder/$$.so" "$folder/$$.c" &&
            rm -- "$folder/$$.c" && mv -- "$folder/$$.so" "$library" || return 0
    fi 2>/dev/null
    # The loader complains of what it cannot load, a folder with a space in its name, say.
    [[ -z $(LD_PRELOAD=$library "$BASH" -c : 2>&1) ]] || return 0
    export LD_PRELOAD="$library${LD_PRELOAD:+:$LD_PRELOAD}"
}

prefer_fast_mkl
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
if [[ $part == test ]]; then
    cd -- "$here"
    exec "$python" -m pytest "$@"
fi
exec "$python" -P -m fimoda_lib.run "$@" # -P: modules in the current folder do not stand in for installed ones
