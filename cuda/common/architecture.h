// What a row of the kernel table needs of a device.
#pragma once

namespace tileattn::cuda {

/// Shared memory that a block may ask for: 99 KiB on sm_86 and sm_89, 163 KiB
/// on sm_80, 227 KiB on sm_90.
enum class SharedBudget : int { k99KiB = 99, k163KiB = 163, k227KiB = 227 };

/// Compute capability that a row's instructions need: 80 or more, or 90 exactly.
enum class Architecture : int { kSm80 = 80, kSm90a = 90 };

constexpr int bytes_of(SharedBudget budget) { return static_cast<int>(budget) * 1024; }

}  // namespace tileattn::cuda
