# Packer: an image for worker nodes of EKS that contains node-fixer. The timer is enabled in the image, so that a node is
# repaired from its first boot on, before kubelet starts; see docs/fleets.md for the order in which to roll it out.
#
#   packer init ami.pkr.hcl && packer build -var packages=https://packages.example.com ami.pkr.hcl
packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3"
    }
  }
}

variable "packages" {
  type = string
}

variable "version" {
  type    = string
  default = "0.1.0"
}

variable "kubernetes" {
  type    = string
  default = "1.34"
}

# For Graviton: arm64, and an instance type such as m7g.large.
variable "architecture" {
  type    = string
  default = "x86_64"
}

variable "instance_type" {
  type    = string
  default = "m7i.large"
}

data "amazon-parameterstore" "base" {
  name = "/aws/service/eks/optimized-ami/${var.kubernetes}/amazon-linux-2023/${var.architecture}/standard/recommended/image_id"
}

source "amazon-ebs" "node" {
  ami_name      = "node-${var.kubernetes}-${var.architecture}-{{timestamp}}"
  instance_type = var.instance_type
  source_ami    = data.amazon-parameterstore.base.value
  ssh_username  = "ec2-user"
}

build {
  sources = ["source.amazon-ebs.node"]

  provisioner "shell" {
    inline = [
      "set -eu",
      "package=node-fixer-${var.version}-1.$(uname -m).rpm",
      "cd \"$(mktemp -d)\"",
      "curl -fsSL --retry 5 -O ${var.packages}/$package -O ${var.packages}/SHA256SUMS",
      "sha256sum -c --ignore-missing SHA256SUMS",
      "sudo dnf install -y ./$package",
      # Presets may be applied to all units at the first boot, and the package's own disables it.
      "echo 'enable node-fixer.timer' | sudo tee /etc/systemd/system-preset/10-local.preset",
      "sudo systemctl enable node-fixer.timer",
      "node-fixer check-config",
    ]
  }
}
