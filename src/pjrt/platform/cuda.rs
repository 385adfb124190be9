//! CUDA's libraries, which the GPU's plugin opens when it first needs them: the wheels that bring them.

use super::{Build, Wheel};

/// Those that the extra `with-cuda` of `jax-cuda13-plugin` 0.12.0.1 asks for, less the ones that its plugin doesn't open
/// (cuSOLVER, cuSPARSE, NVSHMEM). cuBLAS is 13.2 or newer: before, its kernels free a part of Blackwell's memory twice.
pub(super) static LIBRARIES: [Wheel; 8] = [
    // CUDA's runtime: without it there is no device.
    Wheel {
        package: "nvidia-cuda-runtime",
        version: "13.5.37",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2014_x86_64",
                sha256: "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "de2dc5a7367974228b0a69588a9acc9340d3768bef1bf38bf0801eb08497cd2d",
            },
        ],
    },
    // Matrix products.
    Wheel {
        package: "nvidia-cublas",
        version: "13.10.0.20",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux1_x86_64",
                sha256: "dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "c5f3418c0a845232a8cabc58f6fa52cfae7d8bd3680d94c3907aca710fd48d70",
            },
        ],
    },
    // Fused attention.
    Wheel {
        package: "nvidia-cudnn-cu13",
        version: "9.28.1.4",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux_2_27_x86_64",
                sha256: "a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux_2_27_aarch64",
                sha256: "759b6a4919951ed8ec603dec97b96f6a6396c8269b95b3d345526e2471fb433d",
            },
        ],
    },
    // Kernels that the two above compile.
    Wheel {
        package: "nvidia-cuda-nvrtc",
        version: "13.5.37",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2010_x86_64",
                sha256: "86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "36e4fa2a8ada293f5693d308e531c196ab6f91cf7a0ff479bf96a537d43a6096",
            },
        ],
    },
    // Linking of kernels.
    Wheel {
        package: "nvidia-nvjitlink",
        version: "13.5.37",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2010_x86_64",
                sha256: "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "893f6f9a55b2720ed94913b5ba3332e972da8c78dfa2863d0244403dbd528ffc",
            },
        ],
    },
    // Sums over several GPUs.
    Wheel {
        package: "nvidia-nccl-cu13",
        version: "2.32.3",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux_2_27_x86_64",
                sha256: "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux_2_27_aarch64",
                sha256: "a5bee92b2f4af218c109f8d221c3c9adcc752b94ae0ffcb0ed5abf9341a7724c",
            },
        ],
    },
    // Fourier transforms.
    Wheel {
        package: "nvidia-cufft",
        version: "12.5.0.14",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux2014_x86_64",
                sha256: "b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux2014_aarch64",
                sha256: "091cde103312d6e09366122fe3f67092dcfd94cc9785029d695d6bcffaa76fdf",
            },
        ],
    },
    // Profiles.
    Wheel {
        package: "nvidia-cuda-cupti",
        version: "13.5.25",
        python: None,
        builds: &[
            Build {
                machine: "x86_64",
                platform: "manylinux_2_25_x86_64",
                sha256: "9dcca41c12a734192b14e7128ae116bc9ce1b9da686e2ebf48ae7a4415f76650",
            },
            Build {
                machine: "aarch64",
                platform: "manylinux_2_25_aarch64",
                sha256: "d7e4d908315461b6ecbdadfd3c403cc796ed218b293ad117568c947e811cff28",
            },
        ],
    },
];
