// stitch_tiles with merge="union": an object that is larger than the overlap of tiles is seen in
// pieces, one per tile; here they become one box again.
//
//  1. Whole boxes are stitched among themselves (by the caller). A piece is a truncated box that no
//     kept whole box of another tile covers, by IoU > iou_threshold or by an intersection of more
//     than ios_threshold of the area of the piece; a smaller neighbour inside it covers nothing.
//  2. Piece a, cut on the right or lower side of its tile, and piece b, cut on the left or upper
//     one of another, continue each other across the seam if, along the axis across it,
//       - they overlap, or the gap between them is at most `edge`;
//       - each reaches the cut of the other, up to `edge`: begin(a) <= begin(b) + edge and
//         end(b) >= end(a) - edge. Otherwise one tile saw an end where the other saw none;
//     and along the seam the intersection of their extents is more than ios_threshold of the
//     smaller extent. The quality of the link is intersection over union of these extents.
//  3. Every piece links, on each of its cut sides, to the continuation of the best quality (then of
//     higher score, then of lower index). Links join pieces into components, best quality first;
//     one that would bring two boxes of the same tile together is refused, since the detector has
//     told these apart. Without that rule a row of neighbours along a seam becomes one giant box.
//  4. A component of two or more is replaced by its hull, with score, label and index of its best
//     member. A hull is whole, and of all the tiles of its members.
//  5. Hulls, then single pieces, each best first, are kept unless a kept box that shares no tile
//     with them suppresses them: a hull by IoU alone, a piece by IoU or IoS.
//
// Memory is O(boxes): a piece has four sides, hence at most four links of its own.
#include <algorithm>
#include <numeric>
#include <optional>
#include <span>

#include "box_grid.h"
#include "stitch_tiles.h"

namespace tinyops::stitch_tiles {
namespace {

struct Link {
  double quality;
  int32_t a, b;  // numbers of pieces, a < b
  bool operator<(const Link& other) const {
    if (quality != other.quality) return quality > other.quality;
    return a != other.a ? a < other.a : b < other.b;
  }
  bool operator==(const Link& other) const { return a == other.a && b == other.b; }
};

// The two sides of a box along one axis.
template <typename T>
struct Extent {
  T begin, end;
};
template <typename T>
Extent<T> across(const Box<T>& b, bool vertical) {
  return vertical ? Extent<T>{b.y1, b.y2} : Extent<T>{b.x1, b.x2};
}

// Rule 2 for `near`, cut on the right or lower side, and `far`: the quality, or nothing.
template <typename T>
std::optional<double> continues(const Box<T>& near, const Box<T>& far, bool vertical,
                                const Options& o) {
  const auto edge = static_cast<T>(o.edge);
  const Extent<T> a = across(near, vertical), b = across(far, vertical);
  if (!(b.begin - a.end <= edge && a.begin <= b.begin + edge && b.end >= a.end - edge)) return {};
  const Extent<T> s = across(near, !vertical), t = across(far, !vertical);
  const T both = smaller(s.end, t.end) - larger(s.begin, t.begin);
  const T first = s.end - s.begin, second = t.end - t.begin;
  if (!(static_cast<double>(both / smaller(first, second)) > o.ios_threshold && both > T(0)))
    return {};
  return static_cast<double>(both / (first + second - both));
}

// Components of pieces, and the tiles that each has boxes of.
class Components {
 public:
  Components(const std::vector<int32_t>& pieces, const int32_t* tiles)
      : parent_(pieces.size()), members_(pieces.size()), tiles_(pieces.size()) {
    std::iota(parent_.begin(), parent_.end(), 0);
    for (size_t k = 0; k < pieces.size(); ++k) {
      members_[k] = {static_cast<int32_t>(k)};
      tiles_[k] = {tiles[pieces[k]]};
    }
  }
  // False, and nothing changes, if both have a box of one tile.
  bool join(int32_t a, int32_t b) {
    a = root(a), b = root(b);
    if (members_[a].size() < members_[b].size()) std::swap(a, b);
    for (const int32_t tile : tiles_[b])
      if (std::binary_search(tiles_[a].begin(), tiles_[a].end(), tile)) return false;
    for (const int32_t tile : tiles_[b])
      tiles_[a].insert(std::upper_bound(tiles_[a].begin(), tiles_[a].end(), tile), tile);
    members_[a].insert(members_[a].end(), members_[b].begin(), members_[b].end());
    members_[b] = {};
    tiles_[b] = {};
    parent_[b] = a;
    return true;
  }
  int32_t root(int32_t k) {
    while (parent_[k] != k) k = parent_[k] = parent_[parent_[k]];
    return k;
  }
  const std::vector<int32_t>& members(int32_t root) const { return members_[root]; }
  const std::vector<int32_t>& tiles(int32_t root) const { return tiles_[root]; }

 private:
  std::vector<int32_t> parent_;
  std::vector<std::vector<int32_t>> members_, tiles_;  // of roots; tiles sorted
};

// Rule 1.
template <typename T>
bool covers(const Box<T>& whole, const Box<T>& piece, const Options& o) {
  return suppresses(whole, piece, false, o) ||
         static_cast<double>(intersection(whole, piece) / area(piece)) > o.ios_threshold;
}

// The pieces, best first.
template <typename T>
std::vector<int32_t> find_pieces(const Placed<T>& p, const Options& o, const int32_t* order,
                                 const std::vector<int64_t>& kept_whole,
                                 const std::vector<int32_t>& groups) {
  BoxGrid<T> grid(p.boxes.get(), {kept_whole.begin(), kept_whole.end()}, groups.data());
  std::vector<int32_t> pieces;
  for (int64_t k = 0; k < p.n; ++k) {
    const int32_t index = order[k];
    if (!p.truncated[index]) continue;
    bool covered = false;
    grid.near(p.boxes[index], groups[index], [&](int32_t whole) {
      covered |= p.tiles[whole] != p.tiles[index] && covers(p.boxes[whole], p.boxes[index], o);
      return true;
    });
    if (!covered) pieces.push_back(index);
  }
  return pieces;
}

// The links of rule 3, best first.
template <typename T>
std::vector<Link> find_links(const Placed<T>& p, const Options& o,
                             const std::vector<int32_t>& pieces,
                             const std::vector<int32_t>& groups) {
  std::vector<int32_t> number(p.n);
  for (size_t k = 0; k < pieces.size(); ++k) number[pieces[k]] = static_cast<int32_t>(k);
  BoxGrid<T> grid(p.boxes.get(), pieces, groups.data());
  std::vector<Link> links;
  // Wider than `edge`, so that rounding of the sums below cannot hide a piece.
  const T margin = static_cast<T>(o.edge * 1.01);
  for (int32_t mine = 0; mine < static_cast<int32_t>(pieces.size()); ++mine) {
    const int32_t index = pieces[mine];
    const Box<T>& box = p.boxes[index];
    const Box<T> around{box.x1 - margin, box.y1 - margin, box.x2 + margin, box.y2 + margin};
    for (const bool vertical : {false, true})
      for (const bool forward : {false, true}) {
        const uint8_t low = vertical ? kTop : kLeft, high = vertical ? kBottom : kRight;
        if (!(p.cut[index] & (forward ? high : low))) continue;
        double best = -1;
        int32_t partner = -1;
        grid.near(around, groups[index], [&](int32_t other) {
          if (p.tiles[other] == p.tiles[index] || !(p.cut[other] & (forward ? low : high)))
            return true;
          const Box<T>& theirs = p.boxes[other];
          const auto quality =
              forward ? continues(box, theirs, vertical, o) : continues(theirs, box, vertical, o);
          if (quality && (*quality > best || (*quality == best && number[other] < partner))) {
            best = *quality;
            partner = number[other];
          }
          return true;
        });
        if (partner >= 0) links.push_back({best, std::min(mine, partner), std::max(mine, partner)});
      }
  }
  std::sort(links.begin(), links.end());
  return links;
}

// Kept boxes, hulls and pieces of rule 5.
template <typename T>
struct Entry {
  Box<T> box;
  int64_t index;
  std::span<const int32_t> tiles;
  bool piece;
};

bool share_a_tile(std::span<const int32_t> a, std::span<const int32_t> b) {
  if (a.size() < b.size()) std::swap(a, b);
  return std::any_of(b.begin(), b.end(),
                     [&](int32_t tile) { return std::binary_search(a.begin(), a.end(), tile); });
}

// Rule 5. The first `decided` entries are kept already.
template <typename T>
Union<T> settle(const std::vector<Entry<T>>& entries, size_t decided, const Options& o,
                const std::vector<int32_t>& groups_of_boxes) {
  std::vector<Box<T>> boxes;
  std::vector<int32_t> groups, all(entries.size());
  std::iota(all.begin(), all.end(), 0);
  for (const Entry<T>& e : entries) {
    boxes.push_back(e.box);
    groups.push_back(groups_of_boxes[e.index]);
  }
  BoxGrid<T> grid(boxes.data(), all, groups.data());
  std::vector<uint8_t> kept(entries.size());
  Union<T> result;
  for (size_t k = 0; k < entries.size(); ++k) {
    const Entry<T>& e = entries[k];
    bool gone = false;
    if (k >= decided)
      grid.near(e.box, groups[k], [&](int32_t other) {
        gone |= kept[other] && !share_a_tile(entries[other].tiles, e.tiles) &&
                suppresses(boxes[other], e.box, e.piece, o);
        return true;
      });
    kept[k] = !gone;
    if (gone) continue;
    result.boxes.push_back(e.box);
    result.keep.push_back(e.index);
  }
  return result;
}

}  // namespace

template <typename T>
Union<T> unite(const Placed<T>& p, const Options& o, const int32_t* order,
               std::vector<int64_t> kept_whole) {
  const std::vector<int32_t> groups = groups_of(p.n, p.labels, p.images.get()).of;
  const std::vector<int32_t> pieces = find_pieces(p, o, order, kept_whole, groups);
  Components components(pieces, p.tiles.get());
  for (const Link& link : find_links(p, o, pieces, groups)) components.join(link.a, link.b);

  std::vector<Entry<T>> entries, singles;
  for (const int64_t k : kept_whole) entries.push_back({p.boxes[k], k, {&p.tiles[k], 1}, false});
  std::vector<uint8_t> seen(pieces.size());
  // Pieces come best first, so the first of a component is its best.
  for (int32_t k = 0; k < static_cast<int32_t>(pieces.size()); ++k) {
    const int32_t root = components.root(k);
    if (std::exchange(seen[root], 1)) continue;
    const std::vector<int32_t>& members = components.members(root);
    Box<T> hull = p.boxes[pieces[k]];
    for (const int32_t member : members) {
      const Box<T>& b = p.boxes[pieces[member]];
      hull = {smaller(hull.x1, b.x1), smaller(hull.y1, b.y1), larger(hull.x2, b.x2),
              larger(hull.y2, b.y2)};
    }
    const bool piece = members.size() == 1;
    (piece ? singles : entries).push_back({hull, pieces[k], components.tiles(root), piece});
  }
  entries.insert(entries.end(), singles.begin(), singles.end());
  return settle(entries, kept_whole.size(), o, groups);
}

template Union<float> unite(const Placed<float>&, const Options&, const int32_t*,
                            std::vector<int64_t>);
template Union<double> unite(const Placed<double>&, const Options&, const int32_t*,
                             std::vector<int64_t>);

}  // namespace tinyops::stitch_tiles
