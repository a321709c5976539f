job "minimal" {
  type = "batch"

  parameterized {}

  group "main" {
    task "run" {
      driver = "raw_exec"

      config {
        command = "/bin/true"
      }
    }
  }
}
