# Spack package of the planner; `spack repo add packaging/spack` after wrapping it in a repository.
from spack.package import *


class Krzem(PythonPackage):
    """Plans, runs and moves the pre-training of large language models on the accelerators one can get."""

    license("Apache-2.0")

    version("0.2.0")

    variant("report", default=True, description="HTML pages")
    variant("fleet", default=False, description="Fleets and proposals")
    variant("jobs", default=True, description="Readers of training jobs")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-hatchling", type="build")
    depends_on("py-numpy@2:", type=("build", "run"))
    depends_on("py-click@8.1:", type=("build", "run"))
    depends_on("py-rich@13.7:", type=("build", "run"))
    depends_on("py-matplotlib@3.9:", type=("build", "run"), when="+report")
    depends_on("py-jinja2@3.1:", type=("build", "run"), when="+report")
    depends_on("py-scipy@1.14:", type=("build", "run"), when="+fleet")
    depends_on("py-pyyaml@6:", type=("build", "run"), when="+jobs")
