# Terraform: a launch template and a managed node group of EKS whose nodes install node-fixer at their first boot, before
# kubelet starts. user-data.mime beside it does the work.
variable "cluster" { type = string }
variable "node_role_arn" { type = string }
variable "subnet_ids" { type = list(string) }

resource "aws_launch_template" "node" {
  name_prefix = "node-fixer-"
  user_data   = filebase64("${path.module}/user-data.mime")

  metadata_options {
    http_tokens = "required"
  }
}

resource "aws_eks_node_group" "node" {
  cluster_name    = var.cluster
  node_group_name = "node-fixer"
  node_role_arn   = var.node_role_arn
  subnet_ids      = var.subnet_ids
  ami_type        = "AL2023_x86_64_STANDARD" # or AL2023_ARM_64_STANDARD: the user data finds the package

  scaling_config {
    desired_size = 3
    min_size     = 1
    max_size     = 10
  }

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  # How many nodes are replaced at once when the user data changes.
  update_config {
    max_unavailable_percentage = 10
  }
}
