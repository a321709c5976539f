# Sleeps, prints its payload and a greeting, and exits with the code it was asked for.
#
#   dispatch-worker dispatch -meta who=ada -meta seconds=2 -meta code=3 render notes.txt
job "render" {
  type        = "batch"
  datacenters = ["*"]

  # Values for runs that do not bring their own.
  meta {
    who     = "nobody"
    seconds = "1"
    code    = "0"
  }

  parameterized {
    payload       = "optional"
    meta_optional = ["who", "seconds", "code"]
  }

  group "render" {
    # The worker decides about repeats: with Nomad's own a failing job would run several times.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "render" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args = [
          "-c",
          <<-EOT
            [ ! -s local/scene.txt ] || cat local/scene.txt
            sleep "$NOMAD_META_seconds"
            echo "rendered for $NOMAD_META_who"
            exit "$NOMAD_META_code"
          EOT
        ]
      }

      dispatch_payload {
        file = "scene.txt"
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
