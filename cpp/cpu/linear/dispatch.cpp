// Entry points of linear attention: cut the tokens into tasks, pass states between them.
//
// Where (sequence, head) pairs are fewer than threads, their tokens are cut into segments: first
// each segment's own sum of k v^T, then the states before each, then all segments at once. The
// gradient of the state passes the same way, backwards.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cpu/common/instruction_set.h"
#include "cpu/common/workers.h"
#include "cpu/linear/states.h"

namespace tileattn::cpu {

namespace portable {
extern const LinearVariant kLinearVariant;
}
#if defined(TILEATTN_X86_VARIANTS)
namespace avx2 {
extern const LinearVariant kLinearVariant;
}
namespace avx512 {
extern const LinearVariant kLinearVariant;
}
#endif

namespace {

const LinearVariant& variant() {
#if defined(TILEATTN_X86_VARIANTS)
  const InstructionSet set = instruction_set_in_use();
  if (set >= InstructionSet::kAvx512) return avx512::kLinearVariant;
  if (set >= InstructionSet::kAvx2) return avx2::kLinearVariant;
#endif
  return portable::kLinearVariant;
}

const LinearKernels& kernels_for(const LinearAttentionProblem& p) {
  return variant().kernels[static_cast<int>(p.feature_map)];
}

/// What memory safety rests on; the rest was checked by the caller.
void check(const LinearAttentionProblem& p) {
  for (int dim : {p.dim, p.dim_v})
    if (dim <= 0 || dim > kMaxLinearDim)
      throw std::invalid_argument("head dims must be from 1 to 1024");
  if (feature_dim(p.feature_map, p.dim) > kMaxLinearDim)
    throw std::invalid_argument("there must be at most 1024 features");
  if (p.heads_q > 0 && (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0))
    throw std::invalid_argument("heads_kv must divide heads_q");
  if (!p.causal && p.log_decay.data)
    throw std::invalid_argument("log_decay needs causal attention");
}

/// The tokens of every sequence, cut into segments.
class Segments {
 public:
  Segments(const LinearAttentionProblem& p, int heads, int threads)
      : batch_(p.batch), packed_(p.cu_seqlens != nullptr), ends_{0} {
    int longest = 0;
    for (int n = 0; n < batch_; ++n) {
      int begin = packed_ ? std::clamp(p.cu_seqlens[n], ends_.back(), p.len) : 0;
      int end = packed_ ? std::clamp(p.cu_seqlens[n + 1], begin, p.len) : p.len;
      begins_.push_back(begin);
      ends_.push_back(end);
      longest = std::max(longest, end - begin);
    }
    constexpr int kChunksPerSegment = 4, kTasksPerThread = 3;
    std::int64_t pairs = std::max<std::int64_t>(1, std::int64_t{batch_} * heads);
    if (pairs < threads)
      count_ = static_cast<int>(
          std::clamp<std::int64_t>((kTasksPerThread * threads + pairs - 1) / pairs, 1,
                                   std::max(1, longest / (kChunksPerSegment * kChunk))));
  }

  int sequences() const { return batch_; }
  int count() const { return count_; }  // segments of each sequence; they may be empty
  /// All tokens of a sequence.
  LinearSpan whole(int sequence, int head) const {
    return {packed_ ? 0 : sequence, head, begins_[sequence], ends_[sequence + 1]};
  }
  LinearSpan span(int sequence, int head, int segment) const {
    int begin = begins_[sequence], end = ends_[sequence + 1];
    int size = round_up(ceil_div(end - begin, count_), kChunk);
    int first = std::min<std::int64_t>(begin + std::int64_t{segment} * size, end);
    return {packed_ ? 0 : sequence, head, first, std::min(end - first, size) + first};
  }

 private:
  int batch_;
  bool packed_;
  int count_ = 1;
  std::vector<int> begins_, ends_;  // ends_ has a 0 in front
};

/// A task: a segment of one (sequence, head).
struct Place {
  int sequence, head, segment;
};

/// work(place, scratch) for every segment.
template <class Work>
void for_each_segment(const Executor& executor, const Segments& segments, int heads,
                      std::int64_t scratch, Work work) {
  const int per_head = segments.count();
  std::int64_t count = std::int64_t{segments.sequences()} * heads * per_head;
  run_with_scratch(executor, count, scratch, [&](std::int64_t i, float* memory) {
    std::int64_t pair = i / per_head;
    work({static_cast<int>(pair / heads), static_cast<int>(pair % heads),
          static_cast<int>(i % per_head)},
         memory);
  });
}

/// The states that segments start from, when there are several segments.
class PassedStates {
 public:
  /// accumulate(span, state, scratch) adds a segment to a decayed state; first: state of the
  /// first segment to be walked, which is the last one when backwards.
  template <class Accumulate>
  PassedStates(const LinearAttentionProblem& p, const Segments& segments, const Executor& executor,
               bool backwards, ConstStateRef first, Accumulate accumulate)
      : problem_(p), segments_(segments), backwards_(backwards) {
    if (segments.count() == 1) return;
    const std::int64_t size = state_size(p);
    states_ = allocate(std::int64_t{p.batch} * p.heads_q * (segments.count() + 1) * size);
    for_each_segment(executor, segments, p.heads_q, linear_scratch(p),
                     [&](Place place, float* scratch) {
                       float* own = after(place);
                       std::fill(own, own + size, 0.0f);
                       accumulate(span(place), own, scratch);
                     });
    for (int sequence = 0; sequence < p.batch; ++sequence)
      for (int head = 0; head < p.heads_q; ++head) pass(sequence, head, first);
  }

  /// Before the segment in the order of the walk; all tokens' if not causal.
  const float* before(Place place) const {
    return slot(place, problem_.causal ? position(place) : segments_.count());
  }
  float* after(Place place) const { return slot(place, position(place) + 1); }

 private:
  int position(Place place) const {
    return backwards_ ? segments_.count() - 1 - place.segment : place.segment;
  }
  LinearSpan span(Place place) const {
    return segments_.span(place.sequence, place.head, place.segment);
  }
  float* slot(Place place, int n) const {
    std::int64_t pair = std::int64_t{place.sequence} * problem_.heads_q + place.head;
    return states_.get() + (pair * (segments_.count() + 1) + n) * state_size(problem_);
  }
  void pass(int sequence, int head, ConstStateRef first) {
    load_state(problem_, first, sequence, head, slot({sequence, head, 0}, 0));
    for (int n = 0; n < segments_.count(); ++n) {
      Place place{sequence, head, backwards_ ? segments_.count() - 1 - n : n};
      const float decay = decay_over(problem_, span(place));
      const float* earlier = slot(place, n);
      float* own = slot(place, n + 1);
      for (std::int64_t i = 0; i < state_size(problem_); ++i) own[i] += decay * earlier[i];
    }
  }

  const LinearAttentionProblem& problem_;
  const Segments& segments_;
  bool backwards_;
  Buffer states_;
};

}  // namespace

void linear_attention_forward(const LinearAttentionForward& p, const Executor& executor) {
  check(p);
  const Segments segments(p, p.heads_q, executor.num_threads);
  auto accumulate = [&](LinearSpan span, float* state, float* scratch) {
    kernels_for(p).accumulate(p, span, state, scratch);
  };
  const PassedStates states(p, segments, executor, false, p.initial_state, accumulate);
  for_each_segment(
      executor, segments, p.heads_q, state_size(p) + linear_scratch(p),
      [&](Place place, float* state) {
        float* scratch = state + state_size(p);
        const LinearSpan span = segments.span(place.sequence, place.head, place.segment);
        if (segments.count() > 1) {
          std::copy_n(states.before(place), state_size(p), state);
        } else {
          load_state(p, p.initial_state, place.sequence, place.head, state);
          if (!p.causal) accumulate(span, state, scratch);
        }
        kernels_for(p).forward(p, span, state, scratch);
        if (place.segment == segments.count() - 1)
          store_state(p, state, place.sequence, segments.whole(place.sequence, place.head),
                      p.initial_state, p.final_state);
      });
}

void segment_state(const LinearAttentionState& p, const Executor& executor) {
  check(p);
  const Segments segments(p, p.heads_q, executor.num_threads);
  auto accumulate = [&](LinearSpan span, float* state, float* scratch) {
    kernels_for(p).accumulate(p, span, state, scratch);
  };
  const PassedStates states(p, segments, executor, false, p.initial_state, accumulate);
  const std::int64_t pairs = std::int64_t{p.batch} * p.heads_q;
  run_with_scratch(executor, pairs, state_size(p) + linear_scratch(p),
                   [&](std::int64_t pair, float* state) {
                     const int sequence = static_cast<int>(pair / p.heads_q);
                     const int head = static_cast<int>(pair % p.heads_q);
                     const LinearSpan whole = segments.whole(sequence, head);
                     const float* last = state;
                     if (segments.count() > 1) {
                       last = states.after({sequence, head, segments.count() - 1});
                     } else {
                       load_state(p, p.initial_state, sequence, head, state);
                       accumulate(whole, state, state + state_size(p));
                     }
                     store_state(p, last, sequence, whole, p.initial_state, p.final_state);
                   });
}

void linear_attention_backward(const LinearAttentionBackward& p, const Executor& executor) {
  check(p);
  const Segments segments(p, p.heads_kv, executor.num_threads);
  const std::int64_t size = state_size(p);
  auto accumulate = [&](LinearSpan span, float* state, float* scratch) {
    kernels_for(p).accumulate(p, span, state, scratch);
  };
  auto accumulate_gradient = [&](LinearSpan span, float* dstate, float* scratch) {
    kernels_for(p).accumulate_gradient(p, span, dstate, scratch);
  };
  const PassedStates states(p, segments, executor, false, p.initial_state, accumulate);
  const PassedStates dstates(p, segments, executor, true, p.dfinal_state, accumulate_gradient);

  // <S, dS> after each segment.
  const int count = segments.count();
  std::vector<double> products(std::size_t(p.batch) * p.heads_q * count);
  auto product_of = [&](Place place) -> double& {
    return products[(std::size_t(place.sequence) * p.heads_q + place.head) * count + place.segment];
  };

  auto sweep_queries = [&](Place place, float* state) {
    float *dstate = state + size, *scratch = dstate + size;
    const LinearSpan span = segments.span(place.sequence, place.head, place.segment);
    if (count > 1) {
      std::copy_n(states.before(place), size, state);
    } else {
      load_state(p, p.initial_state, place.sequence, place.head, state);
      if (!p.causal) accumulate(span, state, scratch);
    }
    kernels_for(p).backward_queries(p, span, state, scratch);
    if (!p.dlog_decay) return;
    if (count == 1) load_state(p, p.dfinal_state, place.sequence, place.head, dstate);
    product_of(place) = dot(state, count > 1 ? dstates.before(place) : dstate, size) +
                        dot_of_rest(p, p.initial_state, p.dfinal_state, place.sequence,
                                    segments.whole(place.sequence, place.head));
  };
  const int group = p.heads_kv > 0 ? p.heads_q / p.heads_kv : 1;
  auto member = [&](Place place, int n) {
    return Place{place.sequence, place.head * group + n, place.segment};
  };
  auto sweep_keys = [&](Place place, float* dstate) {
    float* scratch = dstate + group * size;
    const LinearSpan span = segments.span(place.sequence, place.head, place.segment);
    std::vector<double> own(group);
    for (int n = 0; n < group; ++n) {
      const Place query_head = member(place, n);
      own[n] = product_of(query_head);
      if (count > 1) {
        std::copy_n(dstates.before(query_head), size, dstate + n * size);
        continue;
      }
      load_state(p, p.dfinal_state, place.sequence, query_head.head, dstate + n * size);
      if (!p.causal)
        accumulate_gradient(segments.whole(place.sequence, query_head.head), dstate + n * size,
                            scratch);
    }
    kernels_for(p).backward_keys(p, span, dstate, own.data(), scratch);
    if (place.segment == 0)
      for (int n = 0; n < group; ++n)
        store_state(p, dstate + n * size, place.sequence,
                    segments.whole(place.sequence, place.head * group + n), p.dfinal_state,
                    p.dinitial_state);
  };

  const std::int64_t memory = std::max(2, group) * size + linear_scratch(p);
  // A head's two sweeps one after the other: the second finds its tokens in the cache. Only the
  // gradient of log_decay passes from one to the other, within a segment.
  for_each_segment(executor, segments, p.heads_kv, memory, [&](Place place, float* scratch) {
    for (int n = 0; n < group; ++n) sweep_queries(member(place, n), scratch);
    sweep_keys(place, scratch);
  });
}

void linear_attention_step(const LinearAttentionStep& p, const Executor& executor) {
  check(p);
  if (p.feature_map != FeatureMap::kNone)
    throw std::invalid_argument("a step takes features, not a feature map");
  const std::int64_t count = std::int64_t{p.batch} * p.heads_q;
  run_with_scratch(executor, count, 0, [&](std::int64_t i, float*) {
    kernels_for(p).step(p, static_cast<int>(i / p.heads_q), static_cast<int>(i % p.heads_q));
  });
}

}  // namespace tileattn::cpu
