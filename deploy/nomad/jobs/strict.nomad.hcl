# Takes neither payload nor meta: for trying out how a request that does not fit is refused.
#
#   dispatch-worker dispatch strict
job "strict" {
  type        = "batch"
  datacenters = ["*"]

  parameterized {
    payload = "forbidden"
  }

  group "strict" {
    # The worker decides about repeats: with Nomad's own a failing job would run several times.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "strict" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "echo done"]
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }

      resources {
        cpu    = 20
        memory = 16
      }
    }
  }
}
