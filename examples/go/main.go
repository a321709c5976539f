// Dispatch a job through the queue and wait for its end: go run . [JOB]
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	requests = "{dispatch}:requests"
	replies  = "{dispatch}:replies"
)

func main() {
	job, url := "demo-render", os.Getenv("REDIS_URL")
	if len(os.Args) > 1 {
		job = os.Args[1]
	}
	if url == "" {
		url = "redis://127.0.0.1:6379/0"
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	code, err := dispatch(ctx, redis.NewClient(options), job)
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(code)
}

// dispatch returns the task's exit code.
func dispatch(ctx context.Context, db *redis.Client, job string) (int, error) {
	// Before the request is added: a reply may be quicker than the next read.
	last := "0"
	newest, err := db.XRevRangeN(ctx, replies, "+", "-", 1).Result()
	if err != nil {
		return 0, err
	}
	if len(newest) > 0 {
		last = newest[0].ID
	}
	id, err := db.XAdd(ctx, &redis.XAddArgs{
		Stream: requests,
		Values: []any{"job", job, "payload", []byte("hello"), "meta", `{"who":"go"}`},
	}).Result()
	if err != nil {
		return 0, err
	}
	for {
		read, err := db.XRead(ctx, &redis.XReadArgs{
			Streams: []string{replies, last}, Count: 100, Block: 5 * time.Second,
		}).Result()
		if err == redis.Nil {
			continue
		}
		if err != nil {
			return 0, err
		}
		for _, entry := range read[0].Messages {
			last = entry.ID
			if entry.Values["id"] != id || entry.Values["stream"] != "requests" {
				continue
			}
			fmt.Println(entry.Values["type"], text(entry, "dispatched_job_id"))
			if entry.Values["final"] == "1" {
				fmt.Println(entry.Values["verdict"], text(entry, "exit_code"), text(entry, "error_message"))
				return exitCode(entry), nil
			}
		}
	}
}

func exitCode(entry redis.XMessage) int {
	if entry.Values["verdict"] == "succeeded" {
		return 0
	}
	if code, err := strconv.Atoi(text(entry, "exit_code")); err == nil && code > 0 {
		return code
	}
	return 1
}

func text(entry redis.XMessage, field string) string {
	value, _ := entry.Values[field].(string)
	return value
}
