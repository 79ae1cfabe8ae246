"""What the library's remedy codes mean on the command line: the only place that turns advice into options."""

from __future__ import annotations

from collections.abc import Mapping

from offline_infer.errors import Remedy, RemedyCode, spell_out

WORDS: Mapping[RemedyCode, str] = {
    "accumulate-float32": "run with --accumulate float32",
    "adopt-outputs": "what a tool wrote by hand is taken over by: offline-infer adopt-outputs BUNDLE WORK FOLDER "
    "[--drop-redundant]",
    "allow-unlisted-chip": "for a chip newer than this list add --allow-unlisted-soc",
    "compile-for-chip": "run: offline-infer compile BUNDLE --soc {chip}",
    "compile-wider": "compile with --precision-mode allow_mix_precision or must_keep_origin_dtype, or with "
    "--decompose-instance-norm",
    "correct-expected-hash": "get the file from its publisher again, or correct --expect-sha256",
    "decompose-norms": "compile with --decompose-instance-norm",
    "expect-hash": "accept only these with --expect-sha256 {hashes}",
    "export-lower-opset": "export again with --opset 13 (11 to 13 are safe)",
    "export-precision": "export the checkpoint with --precision {precision}",
    "export-unverified": "export with --no-verify, which leaves the comparison out",
    "install-engine": "install an engine: pip install openvino, or pip install 'offline-infer[ort]'",
    "install-export": "install what export needs: pip install 'offline-infer[export]'",
    "install-quantize": "install it: pip install 'offline-infer[quantize]'",
    "install-report": "install what it needs: pip install 'offline-infer[report]'",
    "keep-or-overwrite": "say --keep to keep them or --overwrite to make them anew",
    "leave-precision": "leave out --precision, or compile with another --precision-mode",
    "log-compiler": "compile again with atc's log level at info (see --flag) and ASCEND_SLOG_PRINT_TO_STDOUT=1",
    "more-compile-time": "allow more with --timeout",
    "name-checkpoint": "name another one with --checkpoint-name",
    "name-chip": "name it with --soc, or --engine-option soc=NAME",
    "name-compiler": "name it with --atc PATH",
    "name-configuration": "say which with --configuration",
    "name-folds": "say which with --folds {folds}",
    "name-labels": "name every one with --labels NAME=VALUE ...",
    "name-temporary-folder": "set TMPDIR to a folder on a larger disk, or unpack the archive yourself and name the folder",
    "name-previous-stage": "name it with --previous BUNDLE or --previous-predictions FOLDER",
    "name-tool": "name it with --tool-path",
    "overwrite-bundle": "use --overwrite to replace it, or name another folder with --output",
    "quantize": "make one with 'offline-infer quantize BUNDLE --cases FOLDER'",
    "save-probabilities": "predict with --save-probabilities",
    "tune": "choose one with 'offline-infer tune BUNDLE --cases FOLDER --labels FOLDER'",
    "run-in-float32": "run with --precision fp32, or check the compiled model",
    "work-in-rounds": "work in rounds with --scratch",
}
"""Remedy code -> a clause with the option's name; ``{name}`` is one of the remedy's values."""


def advise(text: str) -> str:
    """The text of an error or a recorded reason, with every remedy code as command-line advice."""
    return spell_out(text, _words)


def _words(remedy: Remedy) -> str:
    template = WORDS.get(remedy.code, "")  # a record may have been written by a later release
    return template.format_map(_Values(remedy.values))


class _Values(dict[str, str]):
    """A value the error did not give is shown as a placeholder, as in a usage line."""

    def __missing__(self, name: str) -> str:
        return name.upper()
