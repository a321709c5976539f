job "sweep" {
  type = "sysbatch"

  parameterized {
    meta_optional = ["who"]
  }

  group "g" {
    task "t" {
      driver = "mock_driver"

      config {
        run_for       = "300ms"
        exit_code     = 0
        stdout_string = "swept\n"
      }
    }
  }
}
