"""OpenVINO's UNet with operands in int8, by NNCF: `quantise.py sd15|sdxl FOLDER`, for step.py.

Needs nncf beside what step.py needs, and what step.py has written. The calibration's inputs are random and small: the speed is that
of a model quantised with real ones, the picture is not. SDXL's takes more than 24 GiB with smooth quantisation, so it is without.
"""
import argparse

import nncf
import openvino as ov

import step

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("family", choices=["sd15", "sdxl"])
p.add_argument("folder")
a = p.parse_args()
given = [v.numpy() for v in step.inputs(a.family, 16)]
model = ov.Core().read_model(f"{a.folder}/unet/openvino.xml")
smooth = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1) if a.family == "sdxl" else None
parameters = nncf.AdvancedQuantizationParameters(disable_bias_correction=True,
                                                 **({"smooth_quant_alphas": smooth} if smooth else {}))
quantised = nncf.quantize(model, nncf.Dataset([given]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1,
                          advanced_parameters=parameters)
ov.save_model(quantised, f"{a.folder}/unet/openvino_int8.xml", compress_to_fp16=True)
