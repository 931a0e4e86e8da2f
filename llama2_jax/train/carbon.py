"""Carbon emitted by training, as the paper estimates it (section 2.2.1, Table 2; HW-2, HW-3).

Of the devices alone: without the network, the rest of the servers, or making them.
"""

PUE = 1.1  # power of the data centre / power of the devices
TONNES_PER_MWH = 0.385  # CO2 equivalent of electricity; the average of the United States

# Thermal design power per device (vendor data sheets), by jax device_kind. Of TPUs none is published.
WATTS = {
    "NVIDIA A100-SXM4-40GB": 400,
    "NVIDIA A100-SXM4-80GB": 400,
    "NVIDIA A100-PCIE-40GB": 250,
    "NVIDIA A100 80GB PCIe": 300,
    "NVIDIA H100 80GB HBM3": 700,
    "NVIDIA H200": 700,
}


def carbon_tonnes(device_hours: float, watts: float) -> float:
    """tCO2eq of devices that draw ``watts`` each."""
    return device_hours * watts / 1e6 * PUE * TONNES_PER_MWH
