"""The example pattern in docs/add_a_variant.md keeps the promises that it is said to keep."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Stands in for the field that the guide tells the reader to add.
PROGRAM = """
#include <initializer_list>
#include "tileattn/pattern/pattern.h"
namespace tileattn {
struct SpecWithField : PatternSpec { int block_size = 0; };
#define PatternSpec SpecWithField
@PATTERN@
#undef PatternSpec

bool keeps_promises(const OwnBlock& p, Tiling t, int qt, int kt) {
  Range queries = tokens_of(qt, t.queries, p.len_q), keys = tokens_of(kt, t.keys, p.len_k);
  int seen = 0;
  for (int i = queries.begin; i < queries.end; ++i)
    for (int j = keys.begin; j < keys.end; ++j) {
      int own = i + p.len_k - p.len_q;
      bool defined = own >= 0 && own / p.size == j / p.size;
      if (defined != p.visible(i, j)) return false;
      seen += defined;
    }
  auto holds = [](TwoRuns walk, int tile) {
    for (int n = 0; n < walk.size(); ++n)
      if (walk[n] == tile) return true;
    return false;
  };
  if (seen && !(holds(p.keys_of(qt, t), kt) && holds(p.queries_of(kt, t), qt))) return false;
  Cover cover = p.cover(qt, kt, t);
  if ((cover == Cover::kEmpty) != (seen == 0)) return false;
  return cover != Cover::kFull || seen == queries.size() * t.keys;
}
}  // namespace tileattn

int main() {
  using namespace tileattn;
  for (int len_q = 1; len_q <= 9; ++len_q)
    for (int len_k = 1; len_k <= 9; ++len_k)
      for (int size = 1; size <= 5; ++size)
        for (Tiling t : {Tiling{1, 1}, Tiling{2, 3}, Tiling{4, 2}}) {
          SpecWithField spec;
          spec.block_size = size;
          OwnBlock p = OwnBlock::make(spec, len_q, len_k);
          for (int qt = 0; qt < ceil_div(len_q, t.queries); ++qt)
            for (int kt = 0; kt < ceil_div(len_k, t.keys); ++kt)
              if (!keeps_promises(p, t, qt, kt)) return 1;
        }
}
"""


def test_example_pattern(tmp_path: Path) -> None:
    guide = (ROOT / "docs/add_a_variant.md").read_text()
    (pattern,) = re.findall(r"```cpp\n(.*?)```", guide, re.S)
    source, program = tmp_path / "example.cpp", tmp_path / "example"
    source.write_text(PROGRAM.replace("@PATTERN@", pattern))
    compile_it = ["c++", "-std=c++17", "-Wall", "-I", ROOT / "cpp/include", source, "-o", program]
    built = subprocess.run(compile_it, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([program]).returncode == 0


def test_files_named_in_the_guide_exist() -> None:
    guide = (ROOT / "docs/add_a_variant.md").read_text()
    paths = re.findall(r"`((?:python|cpp|cuda|bindings|tests|benchmarks)/[\w./]*)`", guide)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
