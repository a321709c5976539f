job "shorthand" {
  type        = "batch"
  datacenters = ["*"]
  task "solo" {
    driver = "raw_exec"
    config {
      command = "/bin/true"
    }
    resources {
      cpu    = 50
      memory = 32
    }
  }
}
