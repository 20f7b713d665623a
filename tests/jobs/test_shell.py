"""The shell evaluator against bash itself, and what it must refuse or leave open."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krzem.jobs.shell import Script, read_scripts
from krzem.jobs.shell_words import ShellError, State

BASH = shutil.which("bash")


def run(text: str, **more: str) -> Script:
    return read_scripts({"job.sh": text, **more}, ["job.sh"])[0]


def words(text: str, **more: str) -> list[str]:
    """The words after ``prog`` in the one command of that name."""
    found = [c for c in run(text, **more).commands if c.words[0].text == "prog"]
    assert len(found) == 1
    assert all(word.known for word in found[0].words)
    return [word.text for word in found[0].words[1:]]


def by_bash(text: str) -> list[str] | None:
    """The same from bash; None where bash itself fails."""
    assert BASH is not None
    body = f"set -f\nprog() {{ printf '%s\\x01' \"$@\"; }}\n{text}\n"
    done = subprocess.run(
        [BASH, "--norc", "--noprofile", "-c", body], capture_output=True, check=False, timeout=20,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode or done.stderr:
        return None
    return done.stdout.decode().split("\x01")[:-1]


# -- scripts that bash and the evaluator must read alike

LITERAL = st.text("ab12./-_=:,", min_size=1, max_size=6).filter(lambda t: t[0] not in "=-")
NAME = st.sampled_from(["A", "B", "C"])
ARRAY = st.sampled_from(["L", "M"])
NUMBER = st.integers(0, 300).map(str)
PATTERN = st.sampled_from(["*/", "a*", "*.", ".*", "?", "[0-9]", "*a*b", "/*", "1", "[!a]"])


def arithmetic() -> st.SearchStrategy[str]:
    leaf = NUMBER | st.just("N") | st.just("${#L[@]}")
    return st.recursive(
        leaf,
        lambda inner: st.tuples(
            inner, st.sampled_from(["+", "-", "*", "<", "==", "&&", "||", "<<", "|"]), inner
        ).map(lambda t: f"({t[0]} {t[1]} {t[2] if t[1] != '<<' else '3'})"),
        max_leaves=4,
    )


def expansion() -> st.SearchStrategy[str]:
    return st.one_of(
        NAME.map(lambda n: f"${{{n}}}"),
        NAME.map(lambda n: f"${{#{n}}}"),
        st.tuples(NAME, st.sampled_from(["#", "##", "%", "%%"]), PATTERN).map(
            lambda t: f"${{{t[0]}{t[1]}{t[2]}}}"
        ),
        st.tuples(NAME, st.sampled_from(["/", "//"]), st.sampled_from("ab1."), LITERAL).map(
            lambda t: f"${{{t[0]}{t[1]}{t[2]}/{t[3].replace('/', '')}}}"
        ),
        st.tuples(NAME, st.sampled_from([":-", "-", ":+", "+", ":="]), LITERAL).map(
            lambda t: f"${{{t[0]}{t[1]}{t[2]}}}"
        ),
        st.tuples(NAME, st.integers(0, 3), st.integers(0, 3)).map(
            lambda t: f"${{{t[0]}:{t[1]}:{t[2]}}}"
        ),
        st.tuples(NAME, st.sampled_from(["^^", ",,", "^", ","])).map(
            lambda t: f"${{{t[0]}{t[1]}}}"
        ),
        st.tuples(ARRAY, st.integers(0, 2)).map(lambda t: f"${{{t[0]}[{t[1]}]}}"),
        ARRAY.map(lambda n: f"${{#{n}[@]}}"),
        ARRAY.map(lambda n: f"${{{n}[@]}}"),
        ARRAY.map(lambda n: f"${{{n}[*]}}"),
        arithmetic().map(lambda t: f"$(({t}))"),
        NAME.map(lambda n: f"$(echo x ${n})"),
        NAME.map(lambda n: f"$(basename a/${{{n}:-b}})"),
    )


def word() -> st.SearchStrategy[str]:
    part = st.one_of(
        LITERAL,
        expansion(),
        expansion().map(lambda t: f'"{t}"'),
        st.tuples(LITERAL, expansion()).map(lambda t: f'"{t[0]} {t[1]}"'),
        st.text("ab $*'".replace("'", ""), max_size=5).map(lambda t: f"'{t}'"),
        st.sampled_from(["\\ ", "\\$A", "\\\\", '""']),
    )
    return st.lists(part, min_size=1, max_size=3).map("".join)


def condition() -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(NAME, st.sampled_from(["==", "!=", "="]), LITERAL).map(
            lambda t: f'[ "${t[0]}" {t[1]} "{t[2]}" ]'
        ),
        st.tuples(NAME, st.sampled_from(["==", "!="]), PATTERN).map(
            lambda t: f"[[ ${t[0]} {t[1]} {t[2]} ]]"
        ),
        st.tuples(st.sampled_from(["-z", "-n"]), NAME).map(lambda t: f'[[ {t[0]} "${t[1]}" ]]'),
        st.tuples(NUMBER, st.sampled_from(["-lt", "-ge", "-eq"])).map(
            lambda t: f'[ "$N" {t[1]} {t[0]} ]'
        ),
        arithmetic().map(lambda t: f"(( {t} ))"),
        st.tuples(NAME, LITERAL, NAME).map(
            lambda t: f'[[ "${t[0]}" = "{t[1]}" || -n "${t[2]}" && ! ( -z "$A" ) ]]'
        ),
    )


def statement() -> st.SearchStrategy[str]:
    simple = st.one_of(
        st.tuples(NAME, word()).map(lambda t: f"{t[0]}={t[1]}"),
        st.tuples(NAME, word()).map(lambda t: f"{t[0]}+={t[1]}"),
        st.tuples(NAME, word()).map(lambda t: f"export {t[0]}={t[1]}"),
        st.tuples(ARRAY, st.lists(word(), max_size=3)).map(
            lambda t: f"{t[0]}+=(\n  {chr(10).join(t[1])} # comment\n)"
        ),
        arithmetic().map(lambda t: f"N=$(({t}))"),
        st.just("(( N += 2 ))"),
        st.tuples(NAME, word()).map(lambda t: f"f {t[1]} b"),
        st.tuples(NAME, NAME).map(lambda t: f'{t[0]}=$(cat <<EOF\nx ${t[1]} "y"\nEOF\n)'),
        st.tuples(NAME, NAME).map(lambda t: f'IFS=, read -ra L <<< "${t[0]},q"; {t[1]}=z'),
    )

    def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(condition(), inner, inner).map(
                lambda t: f"if {t[0]}; then\n{t[1]}\nelse\n{t[2]}\nfi"
            ),
            st.tuples(condition(), inner).map(lambda t: f"{t[0]} && {{ {t[1]}\n}}"),
            st.tuples(NAME, PATTERN, inner, inner).map(
                lambda t: f'case "${t[0]}" in\n  {t[1]}|zz) {t[2]} ;;\n  *) {t[3]}\n ;;\nesac'
            ),
            st.tuples(inner).map(lambda t: f"for i in 1 x 3; do {t[0]}\nA+=$i\ndone"),
            st.tuples(inner).map(lambda t: f"for ((k=0; k<2; k++)); do\n{t[0]}\ndone"),
            st.tuples(inner).map(lambda t: f"k=0; while [ $k -lt 2 ]; do k=$((k+1))\n{t[0]}\ndone"),
            st.tuples(inner).map(lambda t: f"( {t[0]}\n)"),
        )

    return st.recursive(simple, compound, max_leaves=3)


HEAD = """A=a/b.1 B="" C='x  y'
N=7
L=(p "q r" s) M=()
f() {
  local B=$1
  C="$1-$2-$#"
}
"""


@pytest.mark.skipif(BASH is None, reason="needs bash to compare with")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(statement(), max_size=4), st.lists(word(), min_size=1, max_size=3))
def test_reads_what_bash_runs(body: list[str], last: list[str]) -> None:
    text = HEAD + "\n".join(body) + f'\nprog {" ".join(last)} "$A" "$B" "$C" $N "${{L[@]}}" |'
    text = text.rstrip("|")
    expected = by_bash(text)
    if expected is not None:
        assert words(text) == expected


CASES = {
    "underscores": ("T=350_000_000\nprog ${T//_}", ["350000000"]),
    "last part": ("P=a/b/c.txt\nprog ${P##*/} ${P%.*}", ["c.txt", "a/b/c"]),
    "nested default": ("prog ${X:-${Y:-3}}", ["3"]),
    "assigning default": ("prog ${X:=4} $X", ["4", "4"]),
    "continued": ("prog --a 1 \\\n  --b 2", ["--a", "1", "--b", "2"]),
    "crlf": ("A=1\r\nprog $A\r\n", ["1"]),
    "string of flags": ('ARGS="\n --a 1 \\\n --b 2\n"\nprog $ARGS', ["--a", "1", "--b", "2"]),
    "array with comments": ("A=(\n --a 1 # no\n # --b 2\n)\nprog ${A[@]}", ["--a", "1"]),
    "comment ends the command": ("prog --a 1 \\\n  # --b 2 \\\n  --c 3", ["--a", "1"]),
    "arithmetic of names": ("H=64\nprog $((4*H)) $((H/3*2)) $((-7/2)) $((2**10))",
                            ["256", "42", "-3", "1024"]),
    "function that prints": ("f() { echo --tp $1; }\nprog $(f 4)", ["--tp", "4"]),
    "function that sets": ("f() { TP=$1; local X=9; }\nX=1\nf 8\nprog $TP $X", ["8", "1"]),
    "map": ("declare -A M=([a]=1 [b]='2 3')\nprog ${M[b]} ${#M[@]}", ["2", "3", "2"]),
    "name reference": ("declare -A M=([k]=' 5 6')\ng() { local -n r=$1; local c=(${r[$2]});"
                       " T=${c[1]}; }\ng M k\nprog $T", ["6"]),
    "eval": ("C=\"prog --a '1 2'\"\neval $C", ["--a", "1 2"]),
    "command in a variable": ('C="prog --a 1"\n$C --b', ["--a", "1", "--b"]),
    "inner shell": ("bash -c 'A=3; prog $A'", ["3"]),
    "devices listed": ("export V=0,1,2,3\nprog $(echo $V | tr ',' '\\n' | wc -l)", ["4"]),
    "fields counted": ("V=0,1,2\nprog $(echo $V | awk -F, '{print NF}')", ["3"]),
    "bc": ('prog $(echo "8 * 4 / 2" | bc)', ["16"]),
    "here-string": ("IFS=',' read -ra D <<< 4,5\nprog ${#D[@]}", ["2"]),
    "slurm header": ("#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH -n 8\nprog $SLURM_NNODES"
                     " $SLURM_NTASKS", ["4", "8"]),
    "hosts counted": ("#SBATCH -N 3\nprog $(scontrol show hostnames $SLURM_JOB_NODELIST | wc -l)",
                      ["3"]),
    "sequence": ("for i in $(seq 1 3); do A+=$i; done\nprog $A {1..3}", ["123", "1", "2", "3"]),
    "elif": ('M=b\nif [ $M = a ]; then T=1; elif [ $M = b ]; then T=2; fi\nprog $T', ["2"]),
    "a list that holds a word": (
        'L=(zero2 pp)\nX=pp\n'
        'if [[ " ${L[*]} " =~ " $X " ]]; then T=1; else T=2; fi\n'
        '[[ ! " ${L[*]} " =~ " tp " ]] && prog $T "it is there"',
        ["1", "it is there"],
    ),
    "an expression with a part in quotes": (
        'X="a b"\n[[ $X =~ a" "b ]] && T=1\nprog "read on"', ["read on"],
    ),
    "and without test": ("X=1\n[[ $X -eq 1 ]] && T=5 || T=6\nprog $T", ["5"]),
    "set --": ("set -- a b\nshift\nprog $1 $#", ["b", "1"]),
    "braces in a word": ("prog ${A:-{}}", ["{}"]),
    "document line that goes on": ("prog $(cat <<EOF\n--a \\\n1\nEOF\n)", ["--a", "1"]),
    "monitor beside it": ("(while true; do X=1; date; done) &\nprog 2", ["2"]),
    "squeezed": ('A="prog   --a \\\n  1"\nB=$(echo "$A" | sed -e \'s/  */ /g\')\neval "$B"',
                 ["--a", "1"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_idioms(text: str, expected: list[str]) -> None:
    assert words(text) == expected


OPEN = {
    "output": ("prog $(nvidia-smi -L | wc -l)", State.UNKNOWN),
    "argument": ("prog $1", State.UNKNOWN),
    "environment": ("prog $SLURM_JOB_ID", State.UNKNOWN),
    "required": ("prog ${TP:?give it}", State.UNKNOWN),
    "nobody sets it": ("prog $EXTRA", State.UNSET),
    "in arithmetic": ("prog $((WORLD_SIZE / 2))", State.UNKNOWN),
    "two branches": ("if [ $1 = a ]; then T=1; else T=2; fi\nprog $T", State.UNKNOWN),
    "a case": ("case $1 in a) T=1 ;; *) T=2 ;; esac\nprog $T", State.UNKNOWN),
    "a word that may be there": ("A=(x)\n[ -f f ] && A+=(--load y)\nprog ${A[1]}", State.MAYBE),
}


@pytest.mark.parametrize(("text", "state"), OPEN.values(), ids=OPEN)
def test_what_is_not_decided_stays_open(text: str, state: State) -> None:
    (command,) = run(text).commands
    assert command.words[1].state is state


def test_what_both_branches_say_is_kept() -> None:
    text = "if [ $1 = a ]; then T=1; U=3; else U=3; T=2; fi\nprog $U"
    assert words(text) == ["3"]


def test_a_branch_that_leaves_does_not_count() -> None:
    assert words("if [ $# -lt 1 ]; then T=9; exit 1; fi\nT=${T:-2}\nprog $T") == ["2"]


def test_arguments_of_the_caller_keep_their_defaults() -> None:
    text = "TP=2\nwhile [[ $# -gt 0 ]]; do case $1 in --tp) TP=$2; shift 2;; esac; done\nprog $TP"
    assert words(text) == ["2"]


def test_every_word_knows_its_line() -> None:
    text = 'TP=4\nARGS="\n  --tp $TP\n  --pp 2\n"\nprog $ARGS'
    (command,) = run(text).commands
    assert [(w.text, w.origin.line) for w in command.words] == [
        ("prog", 6), ("--tp", 3), ("4", 1), ("--pp", 4), ("2", 4),
    ]  # fmt: skip


def test_a_script_that_runs_another_given_one() -> None:
    files = {"job.sh": "#SBATCH -N 2\nTP=8 srun -l bash dir/inner.sh 5\n",
             "dir/inner.sh": "prog $TP $1 $SLURM_NNODES\n"}  # fmt: skip
    (script,) = read_scripts(files, list(files))
    (command,) = script.commands
    assert [w.text for w in command.words] == ["srun", "-l", "prog", "8", "5", "2"]


def test_a_script_that_is_run_but_not_given_is_named() -> None:
    assert "other.sh" in run("bash other.sh 1\n").missing


def test_documents_written_by_the_script() -> None:
    script = run('Z=3\ncat <<EOF > ds.json\n{"stage": $Z}\nEOF\n')
    assert script.documents["ds.json"][0] == '{"stage": 3}\n'


BROKEN = ["if [ 1 = 1 ]; then\nA=1", "A='x\n", 'prog "$A', "for i in 1 2; do A=1", "A=(1 2",
          "f() {", "case $1 in", "cat <<EOF\nx", "prog $(echo", "fi", "prog ${A", ")"]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_half_a_script_is_refused_with_its_line(text: str) -> None:
    if text.startswith("cat"):
        assert run(text).documents == {}
        return
    with pytest.raises(ShellError, match=r"job\.sh:\d+: "):
        run(text)


HOSTILE = {
    "recursion": "f() { f; }\nf",
    "mutual": "f() { g; }\ng() { f; }\nf",
    "doubling": "A=xxxxxxxxxx\nwhile true; do A=$A$A; done",
    "loops in loops": "for a in {1..9999}; do for b in {1..9999}; do A=$b; done; done",
    "brackets": "$(" * 5000,
    "subshells": "(" * 5000,
    "arithmetic": "A=$((" + "(" * 3000 + "1" + ")" * 3000 + "))",
    "big array": "for i in {1..9999}; do A+=({1..9000}); done",
    "patterns": "A=" + "a" * 3000 + "\nfor i in {1..9999}; do B=${A//*a*a*a*a*b/c}; done",
    "eval of itself": 'A=\'eval "$A$A"\'\neval "$A"',
    "commands": "for i in {1..9000}; do x $i; done",
    "documents": "\n".join(f"cat <<E{i}\nx\nE{i}" for i in range(500)),
    "sequence": "prog $(seq 1 999999999)",
    "self call": "bash job.sh",
    "unset arithmetic": "A=A\nprog $((A))",
    "nul": "A=\0\nprog $A",
}


def refusal(text: str) -> str:
    """The sentence with which a script is refused; empty where it is read."""
    try:
        run(text)
    except ShellError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_scripts_end_in_one_sentence(text: str) -> None:
    message = refusal(text)
    assert len(message) < 400
    assert "\n" not in message


@settings(max_examples=200, deadline=None)
@given(st.text("ab$(){}[]\"'`\\;|&<>#!=+-*/ \n1", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert refusal(text) is not None


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = f"{tmp_path}/mark"
    run(f"touch {mark}; echo x > {mark}; $(touch {mark}); eval 'touch {mark}'; `touch {mark}`")
    assert not Path(mark).exists()
