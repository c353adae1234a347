"""The documentation: its example pattern keeps its promises, its links lead somewhere, and its
pictures are those that its commands draw."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tileattn.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests/ptxsim/README.md"]
DRAWN = re.findall(
    r"^    tileattn (show .*-o) (docs/images/\S+)$",
    (ROOT / "docs/neighborhood.md").read_text(),
    re.M,
)

# Stands in for the field that the guide tells the reader to add.
PROGRAM = """
#include <initializer_list>
#include "tileattn/pattern/ranges.h"
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
  auto holds = [](auto cursor, int tile) {
    for (Visit<int> visit; cursor.next(visit);)
      if (visit.tile == tile) return true;
    return false;
  };
  if (holds(p.keys_of(qt, t), kt) != (seen > 0)) return false;
  if (holds(p.queries_of(kt, t), qt) != (seen > 0)) return false;
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
          OwnBlock p = OwnBlock::make(spec, {0, 0, len_q, len_k});
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [link for link in links if "://" not in link]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_pictures_are_small_and_shown() -> None:
    guides = "".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    pictures = list(ROOT.glob("docs/images/*.png"))
    assert len(pictures) == len(DRAWN) + 2  # and those of two demos
    for picture in pictures:
        assert f"(images/{picture.name})" in guides
        assert picture.stat().st_size < 60_000


@pytest.mark.parametrize(("command", "picture"), DRAWN, ids=lambda text: text.split("/")[-1])
def test_commands_draw_the_pictures(command: str, picture: str, tmp_path: Path) -> None:
    """Cell by cell; letters may differ from one matplotlib to another."""
    image = pytest.importorskip("matplotlib.image")
    drawn = tmp_path / "drawn.png"
    result = CliRunner().invoke(app, [*command.split(), str(drawn)], prog_name="tileattn")
    assert result.exit_code == 0, result.output
    found, kept = image.imread(drawn), image.imread(ROOT / picture)
    assert found.shape == kept.shape
    assert (abs(found - kept) > 0.1).any(-1).mean() < 0.01
