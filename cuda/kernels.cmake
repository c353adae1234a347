# The one table of what is instantiated. A row is one translation unit: all patterns of one op for both
# element types and one bucket of head dims.
#
#   family  whose folder has the kernels (FAMILY/ARCH/OP.cuh) and the lists of them (kernel_table.h)
#   arch    the instructions that they need: sm80, which newer GPUs have too, or sm90, Hopper's own
#   KiB     the shared memory that their tiles are made for: 99 on sm_86 and sm_89, 163 on sm_80, 227
#           on sm_90
#   dim     head dims up to this one, padded; in linear attention of queries and keys
#   GPUs    compute capabilities that choose the row and get machine code; others have PTX
#   build   few: built for tests too; full: not, as its code is that of a row that is, with other
#           numbers in its tile
#
# Larger heads of neighborhoods would spill registers.
#
#                family  op                    arch KiB  dim  GPUs   build
tileattn_kernels(softmax forward               sm80  99   32  all    full)
tileattn_kernels(softmax forward               sm80  99   64  all    few)
tileattn_kernels(softmax forward               sm80  99   96  all    few)
tileattn_kernels(softmax forward               sm80  99  128  all    few)
tileattn_kernels(softmax forward               sm80  99  192  all    full)
tileattn_kernels(softmax forward               sm80  99  256  all    few)
tileattn_kernels(softmax forward               sm90 227   64  90a    few)
tileattn_kernels(softmax forward               sm90 227  128  90a    few)
tileattn_kernels(softmax forward               sm90 227  256  90a    few)
tileattn_kernels(softmax backward              sm80  99   32  all    full)
tileattn_kernels(softmax backward              sm80  99   64  all    few)
tileattn_kernels(softmax backward              sm80  99   96  86|89  few)
tileattn_kernels(softmax backward              sm80 163   96  80|90a few)
tileattn_kernels(softmax backward              sm80  99  128  86|89  few)
tileattn_kernels(softmax backward              sm80 163  128  80|90a few)
tileattn_kernels(softmax backward              sm80  99  192  86|89  full)
tileattn_kernels(softmax backward              sm80 163  192  80|90a full)
tileattn_kernels(softmax backward              sm80  99  256  86|89  few)
tileattn_kernels(softmax backward              sm80 163  256  80|90a few)
tileattn_kernels(softmax neighborhood_forward  sm80  99   32  all    full)
tileattn_kernels(softmax neighborhood_forward  sm80  99   64  all    full)
tileattn_kernels(softmax neighborhood_forward  sm80  99  128  all    few)
tileattn_kernels(softmax neighborhood_backward sm80  99   32  all    full)
tileattn_kernels(softmax neighborhood_backward sm80  99   64  all    full)
tileattn_kernels(softmax neighborhood_backward sm80  99  128  86|89  few)
tileattn_kernels(softmax neighborhood_backward sm80 163  128  80|90a few)
tileattn_kernels(linear  linear                sm80  99   64  all    full)
tileattn_kernels(linear  linear                sm80  99  128  all    few)
tileattn_kernels(linear  linear_taylor2        sm80  99   16  all    few)
