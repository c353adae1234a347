// Boxes of a token grid: the tiles of patterns on one, two or three axes.
//
// Tokens of a box, boxes of a grid and tiles of a walk are all numbered row-major,
// the last axis fastest. Row r of a tile is token r of its box.
#pragma once

#include "tileattn/pattern/pattern.h"

namespace tileattn {

/// A token of a grid, or a tile of a grid of tiles.
template <int Rank>
struct Coordinates {
  int at[Rank];
};

template <int Rank>
struct Box {
  Range axis[Rank];

  TILEATTN_HOST_DEVICE int size() const {
    int volume = 1;
    for (int a = 0; a < Rank; ++a) volume *= axis[a].size();
    return volume;
  }

  TILEATTN_HOST_DEVICE Coordinates<Rank> operator[](int row) const {
    Coordinates<Rank> found{};
    for (int a = Rank - 1; a > 0; --a) {
      int rest = row / axis[a].size();
      found.at[a] = axis[a].begin + row - rest * axis[a].size();
      row = rest;
    }
    found.at[0] = axis[0].begin + row;
    return found;
  }

  TILEATTN_HOST_DEVICE bool contains(const Box& other) const {
    bool inside = true;
    for (int a = 0; a < Rank; ++a)
      inside = inside && axis[a].begin <= other.axis[a].begin && other.axis[a].end <= axis[a].end;
    return inside;
  }

  TILEATTN_HOST_DEVICE bool meets(const Box& other) const {
    bool common = true;
    for (int a = 0; a < Rank; ++a)
      common =
          common && imax(axis[a].begin, other.axis[a].begin) < imin(axis[a].end, other.axis[a].end);
    return common;
  }
};

/// Calls visit(row, token) for the first tokens of the box's runs along the last axis, in order.
template <int Rank, class Visit>
void for_each_run(const Box<Rank>& box, Visit visit) {
  Coordinates<Rank> token;
  for (int a = 0; a < Rank; ++a) token.at[a] = box.axis[a].begin;
  const int length = box.axis[Rank - 1].size();
  for (int row = 0, size = box.size(); row < size; row += length) {
    visit(row, token);
    for (int a = Rank - 2; a >= 0 && ++token.at[a] == box.axis[a].end; --a)
      token.at[a] = box.axis[a].begin;
  }
}

/// The tiles to visit: a box of them, in order.
template <int Rank>
struct BoxWalk {
  Box<Rank> tiles;
  int count[Rank];  // tiles of the whole grid
  TILEATTN_HOST_DEVICE int size() const { return tiles.size(); }
  TILEATTN_HOST_DEVICE int operator[](int n) const {
    Coordinates<Rank> tile = tiles[n];
    int index = tile.at[0];
    for (int a = 1; a < Rank; ++a) index = index * count[a] + tile.at[a];
    return index;
  }
};

/// A grid cut into boxes; those at the far borders are cut off.
template <int Rank>
struct BoxGrid {
  int length[Rank];  // tokens
  int box[Rank];     // tokens of a whole box

  TILEATTN_HOST_DEVICE int along(int axis) const { return ceil_div(length[axis], box[axis]); }
  TILEATTN_HOST_DEVICE int count() const {
    int tiles = 1;
    for (int a = 0; a < Rank; ++a) tiles *= along(a);
    return tiles;
  }
  /// Tokens of a whole box.
  TILEATTN_HOST_DEVICE int rows() const {
    int volume = 1;
    for (int a = 0; a < Rank; ++a) volume *= box[a];
    return volume;
  }
  /// The tokens of tile `index`.
  TILEATTN_HOST_DEVICE Box<Rank> operator[](int index) const {
    Box<Rank> tile;
    for (int a = Rank - 1; a >= 0; --a) {
      int rest = index / along(a);
      tile.axis[a] = tokens_of(index - rest * along(a), box[a], length[a]);
      index = rest;
    }
    return tile;
  }
  /// The tiles that some of the tokens are in.
  TILEATTN_HOST_DEVICE BoxWalk<Rank> touched_by(const Box<Rank>& tokens) const {
    BoxWalk<Rank> walk;
    for (int a = 0; a < Rank; ++a) {
      walk.tiles.axis[a] = tiles_of(tokens.axis[a].begin, tokens.axis[a].end, box[a]);
      walk.count[a] = along(a);
    }
    return walk;
  }
};

/// How a grid is cut for queries and for keys: what Tiling is for a row of tokens.
template <int Rank>
struct BoxTiling {
  BoxGrid<Rank> queries;
  BoxGrid<Rank> keys;
};

/// Sets of tokens of a box that has at most 64, as words: bit r stands for row r.
///
/// The tokens whose coordinate on one axis lies in a range are the same run of bits again and
/// again: a multiplication by `repeat` lays the copies out. A box of tokens is the AND of these
/// words, so that masks need no division for an element.
template <int Rank>
struct BoxBits {
  Box<Rank> box;
  int step[Rank];              // rows from one token to the next along the axis
  std::uint64_t repeat[Rank];  // a bit where the axis starts over

  TILEATTN_HOST_DEVICE static BoxBits make(const Box<Rank>& box) {
    BoxBits made{};
    made.box = box;
    const int size = box.size();
    int period = 1;
    for (int a = Rank - 1; a >= 0; --a) {
      made.step[a] = period;
      period *= box.axis[a].size();
      for (int first = 0; first < size; first += period)
        made.repeat[a] |= std::uint64_t{1} << first;
    }
    return made;
  }

  TILEATTN_HOST_DEVICE std::uint64_t all() const { return lowest(box.size()); }

  /// The tokens of the box that lie in `tokens` too.
  TILEATTN_HOST_DEVICE std::uint64_t within(const Box<Rank>& tokens) const {
    std::uint64_t bits = ~std::uint64_t{0};
    for (int a = 0; a < Rank; ++a) {
      int origin = box.axis[a].begin;
      int begin = imax(tokens.axis[a].begin - origin, 0);
      int end = imin(tokens.axis[a].end, box.axis[a].end) - origin;
      std::uint64_t run = end > begin ? lowest(end * step[a]) ^ lowest(begin * step[a]) : 0;
      bits &= run * repeat[a];
    }
    return bits;
  }

 private:
  TILEATTN_HOST_DEVICE static std::uint64_t lowest(int bits) {
    return bits == 0 ? 0 : ~std::uint64_t{0} >> (64 - bits);
  }
};

}  // namespace tileattn
