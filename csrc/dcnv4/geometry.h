// The sizes of a DCNv4 problem, from the shapes of its tensors and the arguments: whatever these
// are, the kernels see a problem that they can solve.
#pragma once

#include "common/argument_checks.h"
#include "dcnv4/params.h"

namespace dcnv4_mm::dcnv4 {
namespace {

void read_pair(const char* name, const Ints& pair, int64_t minimum, int64_t* result) {
  check(pair.size() == 2, "dcnv4: ", name, " must be two numbers (rows, columns), got ",
        pair.size());
  for (int i = 0; i < 2; ++i) {
    check(pair[i] >= minimum && pair[i] <= kMaxSize, "dcnv4: ", name, " must be in [", minimum,
          ", 2^31), got ", pair[i]);
    result[i] = pair[i];
  }
}

// Checks the shapes, of four axes each, and the arguments; sets all of Params that follows from
// them.
Params read_geometry(const Ints& value, const Ints& offset_mask, const Ints& kernel_size,
                     const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                     double offset_scale, bool remove_center) {
  Params p{};
  read_pair("kernel_size", kernel_size, 1, p.kernel);
  read_pair("stride", stride, 1, p.stride);
  read_pair("padding", padding, 0, p.padding);
  read_pair("dilation", dilation, 1, p.dilation);
  p.batch = value[0];
  p.height = value[1];
  p.width = value[2];
  check(p.height > 0 && p.width > 0 && p.height * p.width <= kMaxSize,
        "dcnv4: an image of value must have 1 to 2^31 - 1 pixels, got the shape ",
        shape_text(value));
  const int64_t channels = value[3];
  check(groups > 0 && channels > 0 && channels % groups == 0, "dcnv4: the channels of value (",
        channels, ") must be a positive multiple of groups (", groups, ")");
  p.groups = groups;
  p.group_channels = channels / groups;
  p.offset_scale = offset_scale;
  p.remove_center = remove_center;
  p.points = p.kernel[0] * p.kernel[1] - (remove_center ? 1 : 0);
  check(p.points > 0, "dcnv4: remove_center leaves a 1x1 kernel without points");

  int64_t out_size[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t padded = value[1 + i] + 2 * p.padding[i];
    const int64_t extent = p.dilation[i] * (p.kernel[i] - 1) + 1;
    check(extent <= padded, "dcnv4: the kernel covers ", extent, " pixels, the padded value ",
          padded);
    out_size[i] = (padded - extent) / p.stride[i] + 1;
    check(offset_mask[1 + i] == out_size[i], "dcnv4: offset_mask must have the output size ",
          out_size[i], " on axis ", 1 + i, ", got the shape ", shape_text(offset_mask));
  }
  p.out_height = out_size[0];
  p.out_width = out_size[1];
  p.offset_mask_channels = offset_mask[3];
  check(offset_mask[0] == p.batch, "dcnv4: offset_mask must have the batch size ", p.batch,
        ", got the shape ", shape_text(offset_mask));
  // A division, as the product of three large numbers could overflow.
  check(p.points <= p.offset_mask_channels / (3 * groups), "dcnv4: a row of offset_mask has ",
        p.offset_mask_channels, " numbers, fewer than 3 * groups (", groups, ") * points (",
        p.points, ")");
  return p;
}

// Points `p` to tensors that are contiguous.
inline void set_contiguous(Params* p, const void* value, const void* offset_mask, void* output) {
  const int64_t channels = p->groups * p->group_channels, numbers = p->offset_mask_channels;
  p->value = value;
  p->value_pitches = {p->height * p->width * channels, p->width * channels, channels};
  p->offset_mask = offset_mask;
  p->offset_mask_pitches = {p->out_height * p->out_width * numbers, p->out_width * numbers,
                            numbers};
  p->output = output;
}

}  // namespace
}  // namespace dcnv4_mm::dcnv4
