"""OpenVINO's UNet with operands in int8, by NNCF: `quantise.py sd15|sdxl FOLDER [--size 512]`, for step.py.

Needs nncf beside what step.py needs, and what step.py has written in f32. The calibration's inputs are random: the speed is that of a
model quantised with real ones, the picture is not.
"""
import argparse

import nncf
import openvino as ov

import step

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("family", choices=["sd15", "sdxl"])
p.add_argument("folder")
p.add_argument("--size", type=int, default=512)
a = p.parse_args()
given = [v.numpy() for v in step.inputs(a.family, a.size // 8)]
model = ov.Core().read_model(f"{a.folder}/unet/openvino_{a.size}.xml")
quantised = nncf.quantize(model, nncf.Dataset([given]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1,
                          advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True))
ov.save_model(quantised, f"{a.folder}/unet/openvino_{a.size}_int8.xml", compress_to_fp16=True)
