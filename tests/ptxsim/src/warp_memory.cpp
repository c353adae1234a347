// Addresses of a warp's accesses, and the host memory behind them.
#include <sstream>

#include "machine.h"
#include "warp.h"

namespace ptxsim {

void Warp::addresses(const Inst& in, Operand base, uint32_t mask, uint64_t (&out)[kWarpSize]) {
  const uint64_t offset = static_cast<uint64_t>(in.imm);
  if (in.address_size == 0) {  // a variable of the local frame
    const uint64_t address = current().frame->local_base + offset;
    for_lanes(mask, [&](unsigned i) { out[i] = address; });
  } else if (in.address_size == 8) {
    const uint64_t* p = at<uint64_t>(base);
    for_lanes(mask, [&](unsigned i) { out[i] = p[i] + offset; });
  } else {
    const uint32_t* p = at<uint32_t>(base);
    for_lanes(mask, [&](unsigned i) { out[i] = static_cast<uint32_t>(p[i] + offset); });
  }
}

void Warp::find_global_range(uint64_t address, unsigned bytes, unsigned lane) {
  global_range_ = global_memory().range_of(address);
  if (address - global_range_.begin < global_span(bytes)) return;
  std::ostringstream message;
  message << "global memory access out of bounds: address 0x" << std::hex << address << std::dec
          << ", " << bytes << " bytes: " << global_memory().describe(address);
  throw SimError(message.str(), static_cast<int>(lane));
}

void Warp::misaligned(uint64_t address, unsigned bytes, unsigned lane) {
  std::ostringstream message;
  message << "misaligned access: address 0x" << std::hex << address << std::dec << ", " << bytes
          << " bytes";
  throw SimError(message.str(), static_cast<int>(lane));
}

uint8_t* Warp::local_memory(unsigned lane, uint32_t offset, unsigned bytes) {
  if (uint64_t{offset} + bytes > local_stride_)
    throw SimError("local memory access out of range: offset " + std::to_string(offset),
                   static_cast<int>(lane));
  return &local_[size_t{lane} * local_stride_ + offset];
}

SharedRange Warp::shared_range(uint64_t address, uint32_t bytes, unsigned lane) {
  const uint32_t a = static_cast<uint32_t>(address), rank = a >> kClusterRankShift;
  const uint32_t offset = a & ((1u << kClusterRankShift) - 1);
  Cta& cta = rank ? cta_.cluster.cta(rank - 1) : cta_;
  try {
    cta.shared.check_range(offset, bytes);
  } catch (const SimError& error) {
    throw SimError(error.what(), static_cast<int>(lane));
  }
  return {cta.rank, offset, bytes};
}

uint8_t* Warp::resolve_other(Space space, uint64_t address, unsigned bytes, unsigned lane,
                             Access access) {
  if (address & (bytes - 1)) misaligned(address, bytes, lane);
  if (space == Space::kParam) return reinterpret_cast<uint8_t*>(address);
  if (space == Space::kGeneric) space = address >= kLocalWindow ? Space::kLocal : Space::kShared;
  if (space == Space::kLocal) return local_memory(lane, static_cast<uint32_t>(address), bytes);
  const SharedRange range = shared_range(address, bytes, lane);
  SharedMemory& shared = cta_.cluster.cta(range.cta).shared;
  try {
    if (races() && (access == Access::kRead || access == Access::kWrite))
      races()->access(index_in_cluster(), range, access == Access::kWrite, inst_->line);
    if (access == Access::kRead) return shared.read(range.offset, bytes);
    if (access == Access::kAtomic) shared.read(range.offset, bytes);
    return shared.write(range.offset, bytes);
  } catch (const SimError& error) {
    throw SimError(error.what(), static_cast<int>(lane));
  }
}

}  // namespace ptxsim
