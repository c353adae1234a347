// Entry points: choose the instruction set, cut the problem into tasks, allocate,
// and hand the tasks to the executor.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/common/workers.h"
#include "cpu/softmax/plan.h"
#include "cpu/softmax/sequences.h"
#include "tileattn/attention.h"
#include "tileattn/planner.h"

namespace tileattn::cpu {

namespace portable {
extern const Variant kVariant;
}
#if defined(TILEATTN_X86_VARIANTS)
namespace avx2 {
extern const Variant kVariant;
}
namespace avx512 {
extern const Variant kVariant;
}
namespace avx512_bf16 {  // for tensors in bfloat16
extern const Variant kVariant;
}
#endif

namespace {

const Variant& variant_for(DType dtype) {
#if defined(TILEATTN_X86_VARIANTS)
  const InstructionSet set = instruction_set_in_use();
  if (set >= InstructionSet::kAvx512Bf16 && dtype == DType::kBFloat16) return avx512_bf16::kVariant;
  if (set >= InstructionSet::kAvx512) return avx512::kVariant;
  if (set >= InstructionSet::kAvx2) return avx2::kVariant;
#endif
  return portable::kVariant;
}

/// What the kernels' memory safety rests on; the rest was checked by the caller.
void check(const AttentionProblem& p) {
  auto valid_dim = [](int dim) { return dim > 0 && dim % 8 == 0 && dim <= kMaxDim; };
  if (!valid_dim(p.dim) || !valid_dim(p.dim_v))
    throw std::invalid_argument("head dims must be multiples of 8, at most 256");
  if (p.heads_q > 0 && (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0))
    throw std::invalid_argument("heads_kv must divide heads_q");
  if ((p.cu_seqlens_q == nullptr) != (p.cu_seqlens_k == nullptr))
    throw std::invalid_argument("cu_seqlens_q and cu_seqlens_k go together");
  if (p.neighborhood.rank == 0) {
    if (p.extra_keys != 0) throw std::invalid_argument("extra keys go with a neighborhood");
    return;
  }
  planner::check(p.neighborhood);
  std::int64_t tokens = 1;
  for (const auto& axis : p.neighborhood.axis) tokens *= axis.length;
  if (tokens != p.len_q || tokens != p.len_k)
    throw std::invalid_argument("len_q and len_k must count the tokens of the grid");
  if (p.softcap != 0 || p.alibi_slopes || p.bias.data || p.sinks || p.cu_seqlens_q)
    throw std::invalid_argument("softcap, ALiBi, bias, sinks and cu_seqlens do not go with a grid");
}

const PatternKernels& kernels_for(const AttentionProblem& p) {
  const Variant& variant = variant_for(p.dtype);
  if (p.neighborhood.rank > 0) return variant.on_grids;
  return variant.in_sequences[static_cast<int>(kind_of(p.pattern))];
}

/// One task for each sequence, head and tile; a head's tiles follow each other.
template <class CountTiles>
std::vector<Task> tasks_of(const std::vector<Sequence>& sequences, int heads, CountTiles tiles) {
  std::vector<Task> tasks;
  for (const Sequence& sequence : sequences)
    for (int head = 0; head < heads; ++head)
      for (int tile = tiles(sequence) - 1; tile >= 0; --tile)
        tasks.push_back({&sequence, head, tile});
  return tasks;
}

/// Calls work(task, scratch) for each task. Threads take tasks as they come free.
template <class Work>
void run(const Executor& executor, const Task* tasks, std::int64_t count, std::int64_t scratch_size,
         Work work) {
  run_with_scratch(executor, count, scratch_size,
                   [&](std::int64_t i, float* scratch) { work(tasks[i], scratch); });
}

/// Whether tasks of different sequences or heads add to the same element of dbias.
bool shares_dbias(const AttentionBackward& p) {
  return p.dbias.data && ((p.dbias.batch_stride == 0 && p.batch > 1) ||
                          (p.dbias.head_stride == 0 && p.heads_kv > 1));
}

/// Over how many tasks to spread the key tiles of one (sequence, key head), when
/// `side_by_side` of those run at the same time.
int chunks_for(const std::vector<Sequence>& sequences, int threads, std::int64_t side_by_side) {
  constexpr int kTasksPerThread = 3;  // enough to even out their lengths
  constexpr int kMaxChunks = 32;      // each has its own dq
  int most_tiles = 1;
  for (const Sequence& s : sequences) most_tiles = std::max(most_tiles, s.key_tiles);
  if (threads <= 1 || side_by_side >= kTasksPerThread * threads) return 1;
  int wanted = static_cast<int>((kTasksPerThread * threads + side_by_side - 1) / side_by_side);
  return std::min({wanted, most_tiles, kMaxChunks});
}

/// Whether threads that take whole (sequence, key head) pairs, each as it comes free, are
/// about equally busy.
bool heads_fill_threads(const AttentionProblem& p, const std::vector<Sequence>& sequences,
                        int threads) {
  constexpr double kMost = 1.1;  // of the mean
  auto cost = [](const Sequence& s) { return double(s.len_k) * (s.len_q + kTile.queries); };
  std::vector<double> busy(std::max(threads, 1), 0.0);
  double total = 0, largest = 0;
  for (const Sequence& s : sequences) {
    total += cost(s) * p.heads_kv;
    largest = std::max(largest, cost(s));
  }
  // No thread is busier than all on average and the largest pair together.
  if (total + largest * busy.size() <= kMost * total) return true;
  for (const Sequence& s : sequences)
    for (int head = 0; head < p.heads_kv; ++head)
      *std::min_element(busy.begin(), busy.end()) += cost(s);
  return *std::max_element(busy.begin(), busy.end()) * busy.size() <= kMost * total;
}

/// A task is a key head.
void forward_by_heads(const AttentionForward& p, const std::vector<Sequence>& sequences,
                      const Executor& executor) {
  const PatternKernels& kernels = kernels_for(p);
  std::int64_t keys = 0;
  for (const Sequence& s : sequences) keys = std::max<std::int64_t>(keys, s.padded_keys());
  auto pairs = tasks_of(sequences, p.heads_kv, [](auto&) { return 1; });
  const std::int64_t count = pairs.size(), threads = std::max(executor.num_threads, 1);
  run_with_scratch(executor, count, packed_size(p, keys) + forward_scratch(p),
                   [&](std::int64_t i, float* scratch) {
                     const Task next = pairs[std::min(i + threads, count - 1)];
                     kernels.forward_head(p, pairs[i], next, {scratch, scratch + keys * p.dim},
                                          scratch + packed_size(p, keys));
                   });
}

/// All keys and values are packed first, then tasks take single query tiles.
void forward_by_tiles(const AttentionForward& p, const std::vector<Sequence>& sequences,
                      const Executor& executor) {
  const PatternKernels& kernels = kernels_for(p);
  const int group = p.heads_q / p.heads_kv;
  const Sequence& last = sequences.back();
  const std::int64_t keys = (last.packed_key + last.padded_keys()) * p.heads_kv;
  Buffer buffer = allocate(packed_size(p, keys));
  auto packed = [&](const Sequence& s, int kv_head) {
    std::int64_t first = s.packed_key * p.heads_kv + std::int64_t{kv_head} * s.padded_keys();
    float* v = buffer.get() + keys * p.dim;
    return PackedHead{buffer.get() + first * p.dim, v + first * round_up(p.dim_v, kColumnGranule)};
  };
  auto panels = tasks_of(sequences, p.heads_kv, [](auto& s) { return s.panels; });
  run(executor, panels.data(), panels.size(), 0,
      [&](Task task, float*) { kernels.pack_panel(p, task, packed(*task.sequence, task.head)); });
  auto tiles = tasks_of(sequences, p.heads_q, [](auto& s) { return s.query_tiles; });
  run(executor, tiles.data(), tiles.size(), forward_scratch(p), [&](Task task, float* scratch) {
    kernels.forward(p, task, packed(*task.sequence, task.head / group), scratch);
  });
}

/// Whether so few queries share each key head that reading it in place costs least, and there are
/// tasks for all threads.
bool has_few_queries(const AttentionProblem& p, const std::vector<Sequence>& sequences,
                     int threads) {
  if (p.neighborhood.rank > 0) return false;
  int most = 0;
  for (const Sequence& s : sequences) most = std::max(most, s.len_q);
  const std::int64_t pairs = static_cast<std::int64_t>(sequences.size()) * p.heads_kv;
  return most <= kGroup && most * (p.heads_q / p.heads_kv) <= kFewQueries && pairs >= threads;
}

/// A task is some key heads of a sequence: those whose rows of a token lie side by side, as far as
/// all threads have tasks.
void forward_of_few(const AttentionForward& p, const std::vector<Sequence>& sequences,
                    const Executor& executor) {
  constexpr std::int64_t kTasksPerThread = 4;
  const PatternKernels& kernels = kernels_for(p);
  const std::int64_t threads = std::max(executor.num_threads, 1);
  const std::int64_t pairs = static_cast<std::int64_t>(sequences.size()) * p.heads_kv;
  std::int64_t heads = std::min<std::int64_t>(p.heads_kv, kTile.queries / kFewQueries);
  if (threads > 1)
    heads = std::min(heads, std::max<std::int64_t>(pairs / (kTasksPerThread * threads), 1));
  if (p.k.head_stride > p.k.token_stride) heads = 1;
  const int step = static_cast<int>(heads);
  std::vector<Task> tasks;
  for (const Sequence& s : sequences)
    for (int head = 0; head < p.heads_kv; head += step) tasks.push_back({&s, head, 0});
  run(executor, tasks.data(), tasks.size(), few_scratch(p), [&](Task task, float* scratch) {
    kernels.forward_few(p, task, std::min(step, p.heads_kv - task.head), scratch);
  });
}

/// A task is a key head.
void backward_by_heads(const AttentionBackward& p, const Cut& cut, const Executor& executor) {
  const PatternKernels& kernels = kernels_for(p);
  std::int64_t rows = 0, end = cut.dq_rows;
  for (auto s = cut.sequences.rbegin(); s != cut.sequences.rend(); end = (s++)->dq_row)
    rows = std::max(rows, end - s->dq_row);
  const int group = p.heads_q / p.heads_kv;
  const BackwardPlan plan{&p, 1, 1, {nullptr, group, 0, rows, 0}};
  auto pairs = tasks_of(cut.sequences, p.heads_kv, [](auto&) { return 1; });
  run(executor, pairs.data(), pairs.size(),
      backward_scratch(p) + group * rows * round_up(p.dim, kColumnGranule),
      [&](Task pair, float* scratch) { kernels.backward_head(plan, pair, scratch); });
}

/// A task is some key tiles of a key head, or a query tile.
void backward_by_tiles(const AttentionBackward& p, const Cut& cut, const Executor& executor) {
  const PatternKernels& kernels = kernels_for(p);
  const std::vector<Sequence>& sequences = cut.sequences;
  const bool in_turn = shares_dbias(p);
  const std::int64_t pairs = static_cast<std::int64_t>(sequences.size()) * p.heads_kv;
  const int chunks = chunks_for(sequences, executor.num_threads, in_turn ? 1 : pairs);
  Buffer dq = allocate(chunks * p.heads_q * cut.dq_rows * round_up(p.dim, kColumnGranule));
  const int parts = static_cast<int>(sequences.size()) / p.batch;
  const BackwardPlan plan{&p, chunks, parts, {dq.get(), p.heads_q, 0, cut.dq_rows, 0}};

  auto queries = tasks_of(sequences, p.heads_q, [](auto& s) { return s.query_tiles; });
  run(executor, queries.data(), queries.size(), 0,
      [&](Task task, float*) { kernels.prepare_queries(plan, task); });

  auto tasks = tasks_of(sequences, p.heads_kv, [&](auto&) { return chunks; });
  const std::int64_t count = tasks.size(), step = in_turn ? chunks : count;
  for (std::int64_t first = 0; first < count; first += step)
    run(executor, tasks.data() + first, step, backward_scratch(p),
        [&](Task task, float* scratch) { kernels.backward(plan, task, scratch); });

  if (p.extra_keys > 0) {
    // One task for all parts of a batch entry, which add to the same gradients.
    std::vector<Task> extra;
    for (int b = 0; b < p.batch; ++b)
      for (int head = 0; head < p.heads_kv; ++head)
        extra.push_back({&sequences[b * parts], head, 0});
    run(executor, extra.data(), extra.size(), backward_scratch(p),
        [&](Task task, float* scratch) { kernels.backward_extra(plan, task, scratch); });
  }

  run(executor, queries.data(), queries.size(), 0,
      [&](Task task, float*) { kernels.store_dq(plan, task); });
}

}  // namespace

const char* instruction_set() { return name_of(instruction_set_in_use()); }

void attention_forward(const AttentionForward& p, const Executor& executor) {
  check(p);
  const Cut cut = cut_into_sequences(p);
  const std::vector<Sequence>& sequences = cut.sequences;
  if (sequences.empty() || p.heads_q == 0) return;
  if (has_few_queries(p, sequences, executor.num_threads)) forward_of_few(p, sequences, executor);
  else if (heads_fill_threads(p, sequences, executor.num_threads))
    forward_by_heads(p, sequences, executor);
  else forward_by_tiles(p, sequences, executor);
}

void attention_backward(const AttentionBackward& p, const Executor& executor) {
  check(p);
  const Cut cut = cut_into_sequences(p);
  if (cut.sequences.empty() || p.heads_q == 0) return;
  const bool heads_share = p.extra_keys > 0 || shares_dbias(p);
  if (!heads_share && heads_fill_threads(p, cut.sequences, executor.num_threads))
    backward_by_heads(p, cut, executor);
  else backward_by_tiles(p, cut, executor);
}

}  // namespace tileattn::cpu
