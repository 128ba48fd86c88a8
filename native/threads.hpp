// Threads for one call.
//
// They are those of PyTorch's own OpenMP pool where that can be found in the process: its threads wait for work in a
// loop for some milliseconds after each operation, and others would have to share the processors with them. After a
// fork, in which a pool does not survive, and where there is none, threads are started for the call and joined.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace hdcrf {

// Numbers too small for the exponent become zero while this exists: marginals and gradients are full of them, and a
// processor takes many times longer over each.
class SubnormalsAreZero {
public:
    SubnormalsAreZero() {
#if defined(__x86_64__)
        before_ = _mm_getcsr();
        _mm_setcsr(before_ | 0x8040);
#elif defined(__aarch64__)
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(before_ | uint64_t(1) << 24));
#endif
    }
    ~SubnormalsAreZero() {
#if defined(__x86_64__)
        _mm_setcsr(before_);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" ::"r"(before_));
#endif
    }
    SubnormalsAreZero(const SubnormalsAreZero&) = delete;
    SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

private:
#if defined(__x86_64__)
    unsigned before_ = 0;
#elif defined(__aarch64__)
    uint64_t before_ = 0;
#endif
};

// The threads that share a piece of work.
class Team {
public:
    int threads = 1;

    // Let no thread through before all have come.
    void wait() {
        if (threads == 1) return;
        const uint32_t turn = turn_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            waiting_.store(0, std::memory_order_relaxed);
            next();
        } else {
            wait_for_next(turn);
        }
    }

private:
    template <typename Work>
    friend void parallel(int threads, const Work& work);

    void next() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            turn_.fetch_add(1, std::memory_order_release);
        }
        changed_.notify_all();
    }

    void wait_for_next(uint32_t turn) {
        // Some 100 microseconds: what threads wait for is most often less, and to wake a sleeping one takes as long.
        for (int spin = 0; spin < 4000; spin++) {
            if (turn_.load(std::memory_order_acquire) != turn) return;
#if defined(__x86_64__)
            _mm_pause();
#elif defined(__aarch64__)
            asm volatile("yield");
#endif
        }
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return turn_.load(std::memory_order_acquire) != turn; });
    }

    std::atomic<int> waiting_{0};
    std::atomic<uint32_t> turn_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

// What GCC's and Clang's OpenMP libraries both offer to start a parallel region, if PyTorch has loaded one.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;
    std::atomic<bool> forked{false};

    static OpenMP& pool() {
        static OpenMP found;
        return found;
    }
    bool usable() const { return parallel && thread && threads && !forked.load(std::memory_order_relaxed); }

private:
    OpenMP() {
#if defined(__linux__)
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        thread = reinterpret_cast<decltype(thread)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
        threads = reinterpret_cast<decltype(threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
        pthread_atfork(nullptr, nullptr, [] { pool().forked.store(true, std::memory_order_relaxed); });
#endif
    }
};

// Run work(team, thread) on that many threads, or on as many as the system gives.
//
// Work must not throw: what needs memory gets it before.
template <typename Work>
void parallel(int threads, const Work& work) {
    Team team;
    const auto run = [&team, &work](int thread) {
        const SubnormalsAreZero mode;
        work(team, thread);
    };
    if (threads <= 1) return run(0);
    const auto follow = [&team, &run](int thread) {
        team.wait_for_next(0);  // until it is known how many there are
        run(thread);
    };
    const auto lead = [&team, &run](int count) {
        team.threads = count;
        team.next();
        run(0);
    };
    OpenMP& pool = OpenMP::pool();
    if (pool.usable()) {
        const auto join = [&pool, &follow, &lead] {
            const int thread = pool.thread();
            thread ? follow(thread) : lead(pool.threads());
        };
        using Join = decltype(join);
        pool.parallel([](void* call) { (*static_cast<Join*>(call))(); }, const_cast<void*>(static_cast<const void*>(&join)),
                      unsigned(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    others.reserve(size_t(threads - 1));
    try {
        for (int thread = 1; thread < threads; thread++) others.emplace_back(follow, thread);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    lead(int(others.size()) + 1);
    for (auto& other : others) other.join();
}

struct Range {
    int64_t begin, end;
};

// The part of 0 … count - 1 that is `part`'s.
inline Range share(int64_t count, int part, int parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

// Whether to split work that is not worth it: for tests, which are small.
inline std::atomic<bool>& split_small_work() {
    static std::atomic<bool> split{false};
    return split;
}

// How many threads may have vertices of their own, so that these take no more than a few times what the points take.
inline int fitting_threads(int threads, int64_t points, int64_t vertices) {
    const int64_t fitting = 1 + 4 * points / (vertices > 0 ? vertices : 1);
    return fitting < threads ? int(fitting) : threads;
}

// How many threads a piece of work is worth.
inline int useful_threads(int threads, int64_t operations, int64_t least = 1 << 16) {
    if (split_small_work().load(std::memory_order_relaxed)) least = 1;
    const int64_t worth = operations / least;
    if (worth < 1 || threads < 1) return 1;
    return worth < threads ? int(worth) : threads;
}

// An array that is not filled, aligned to a cache line, in large pages where it is large: the system takes several
// times as long to hand over the same memory in small ones.
template <typename T>
class Buffer {
public:
    explicit Buffer(size_t count = 0) { resize(count); }
    Buffer(Buffer&& other) noexcept : data_(other.data_), alignment_(other.alignment_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(alignment_, other.alignment_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(); }

    void resize(size_t count) {
        constexpr size_t page = size_t(2) << 20;
        free();
        data_ = nullptr;
        const size_t bytes = count * sizeof(T);
        alignment_ = bytes < 2 * page ? 64 : page;
        data_ = static_cast<T*>(::operator new(bytes, std::align_val_t(alignment_)));
#if defined(__linux__)
        if (alignment_ == page) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }

private:
    void free() { ::operator delete(data_, std::align_val_t(alignment_)); }

    T* data_ = nullptr;
    size_t alignment_ = 64;
};

}  // namespace hdcrf
