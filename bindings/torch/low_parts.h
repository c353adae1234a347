// What rounding takes from out and lse, as tensors that the forward keeps for the backward; an
// empty tensor stands for none.
#pragma once

#include "tensors.h"
#include "tileattn/attention.h"

namespace tileattn::torch_binding {

struct LowParts {
  Tensor out, lse;
};

/// Those that `problem` is to write beside its out and lse: none unless they are wanted, and out's
/// only where it is rounded. `zeroed`: as in new_result().
inline LowParts new_low_parts(const Tensor& out, const Tensor& lse, bool wanted, bool zeroed,
                              AttentionForward& problem) {
  const bool out_wanted = wanted && out.scalar_type() != ScalarType::Float;
  auto sizes = [](const Tensor& like, bool wanted) { return wanted ? sizes_of(like) : Sizes{0}; };
  LowParts low{new_result(out, sizes(out, out_wanted), ScalarType::Char, zeroed),
               new_result(lse, sizes(lse, wanted), ScalarType::Float, zeroed)};
  if (out_wanted) problem.out_low = static_cast<std::int8_t*>(low.out.data_ptr());
  if (wanted) problem.lse_low = static_cast<float*>(low.lse.data_ptr());
  return low;
}

/// Gives `problem` those of its out and lse, which have these shapes. `low` must outlive its run.
inline void take_low_parts(LowParts& low, const Tensor& out, const Tensor& lse,
                           AttentionBackward& problem) {
  auto fits = [](const Tensor& low, const Tensor& like, ScalarType dtype) {
    return low.scalar_type() == dtype && (low.numel() == 0 || sizes_of(low) == sizes_of(like));
  };
  STD_TORCH_CHECK(fits(low.out, out, ScalarType::Char) && fits(low.lse, lse, ScalarType::Float),
                  "tileattn: out_low and lse_low must have the shapes of out and lse, or be empty");
  low = {torch::stable::contiguous(low.out), torch::stable::contiguous(low.lse)};
  if (low.out.numel() > 0) problem.out_low = static_cast<const std::int8_t*>(low.out.data_ptr());
  if (low.lse.numel() > 0) problem.lse_low = static_cast<const float*>(low.lse.data_ptr());
}

}  // namespace tileattn::torch_binding
